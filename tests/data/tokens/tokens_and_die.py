"""Makes token files, killed by SIGKILL at given moments, then to the end.

    python tokens_and_die.py FOLDER:PARTS:[EVENT,...] ...

One job after the other: PARTS processes share FOLDER. Each of them is killed when it touches the file
system under FOLDER for the EVENT-th time (opens, renames, removes), for each
number EVENT, and at last left alone. Prints how each ended, and how many such
events it saw. Processes are forked after the imports, to save seconds.
"""

import os
import pathlib
import signal
import sys
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tiny_gemma  # noqa: E402

from gemmascope_jax.data.text import documents  # noqa: E402
from gemmascope_jax.data.tokens import token_files  # noqa: E402

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
OPTIONS = dict(rows=1500, chunk_characters=300, progress=False)


def mixed():
  made_up = tiny_gemma.texts(150)
  return documents.mix([("a", made_up[:100]), ("b", made_up[100:])])


def make(folder: str, part=(0, 1), **options):
  return token_files.make(
    folder,
    mixed,
    tiny_gemma.ByteTokenizer(),
    16,
    key={"sources": "made up"},
    part=part,
    **OPTIONS | options,
  )


def run(folder: str, part, deadline: int | None) -> None:
  seen = 0

  def watch(event, arguments):
    nonlocal seen
    path = arguments[0] if arguments else None
    if event in EVENTS and str(path).startswith(folder):
      seen += 1
      if seen == deadline:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(watch)
  make(folder, part, timeout_s=60)
  print("finished", part[0], seen, flush=True)


def forked(call, *arguments) -> int:
  child = os.fork()
  if not child:
    try:
      call(*arguments)
    except BaseException:
      traceback.print_exc()
      os._exit(1)
    os._exit(0)
  return child


def supervise(folder: str, part, deadlines) -> None:
  for deadline in [*deadlines, None]:
    _, status = os.waitpid(forked(run, folder, part, deadline), 0)
    if os.WIFSIGNALED(status):
      print("killed", part[0], deadline, flush=True)
    elif status:
      raise SystemExit(1)


def main(*jobs: str) -> None:
  for job in jobs:
    folder, parts, deadlines = job.split(":")
    children = [
      forked(
        supervise,
        folder,
        (p, int(parts)),
        [int(event) for event in deadlines.split(",") if event],
      )
      for p in range(int(parts))
    ]
    if any([os.waitpid(child, 0)[1] for child in children]):
      raise SystemExit(1)
    print("end of job", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
