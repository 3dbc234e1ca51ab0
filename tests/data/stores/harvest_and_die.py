"""Harvests a store, killed by SIGKILL at given moments, then run to its end.

    python harvest_and_die.py FOLDER [EVENT ...]

For each number EVENT a process harvests into FOLDER and is killed when it
touches the file system under FOLDER for that many-th time (opens, renames,
removes); at last one process is left alone. Processes are forked after the
imports and before JAX starts anything, to save seconds. Prints how each ended
and how many such events it saw.
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tiny_gemma  # noqa: E402

from gemmascope_jax.data.stores.harvest import harvest  # noqa: E402

SITES = ("res.0", "att.0")  # one layer: compiles faster
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")


def run(folder: str, deadline: int | None) -> None:
  seen = 0

  def watch(event, arguments):
    nonlocal seen
    path = arguments[0] if arguments else None
    if event in EVENTS and str(path).startswith(folder):
      seen += 1
      if seen == deadline:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(watch)
  harvest(
    tiny_gemma.lm(),
    tiny_gemma.windows(),
    SITES,
    folder,
    tiny_gemma.POLICY,
    **tiny_gemma.OPTIONS,
  )
  print("finished", seen, flush=True)


def main(folder: str, *deadlines: str) -> None:
  for deadline in [*map(int, deadlines), None]:
    child = os.fork()
    if not child:
      try:
        run(folder, deadline)
      finally:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
      print("killed", deadline, flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
