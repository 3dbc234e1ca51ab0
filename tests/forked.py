"""Runs commands of our binaries; libraries are imported once, not by each.

`python -m tests.forked LIBRARY,...` with a list of [module, argument, ...] in
JSON on its standard input: each command runs in a fork of that process.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable


def run(
  commands: list[list[str]], *libraries: str
) -> list[subprocess.CompletedProcess]:
  """What `subprocess.run` of each command would give.

  Args:
    commands: a module and its arguments, of each.
    *libraries: modules to import first, which start no thread.
  """
  done = subprocess.run(
    [sys.executable, "-m", "tests.forked", ",".join(libraries)],
    input=json.dumps(commands),
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return [
    subprocess.CompletedProcess(command, *found)
    for command, found in zip(commands, json.loads(done.stdout), strict=True)
  ]


def status_of(call: Callable[[], None]) -> int:
  """Calls it in a fork, where it changes nothing here; its exit status."""
  sys.stdout.flush()
  sys.stderr.flush()
  child = os.fork()
  if child:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  status = 1
  try:
    call()
    status = 0
  except SystemExit as end:
    if end.code is None or isinstance(end.code, int):
      status = end.code or 0
    else:
      print(end.code, file=sys.stderr)
  except BaseException:
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _run(module: str, *arguments: str) -> tuple[int, str, str]:
  with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:

    def call():
      os.dup2(out.fileno(), 1)
      os.dup2(err.fileno(), 2)
      sys.argv = [module, *arguments]
      runpy.run_module(module, run_name="__main__", alter_sys=True)

    status = status_of(call)
    for file in (out, err):
      file.seek(0)
    return status, out.read(), err.read()


def _main() -> None:
  for library in sys.argv[1].split(","):
    importlib.import_module(library)
  commands = json.load(sys.stdin)
  json.dump([_run(*command) for command in commands], sys.stdout)


if __name__ == "__main__":
  _main()
