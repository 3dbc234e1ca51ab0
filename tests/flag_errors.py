"""What a binary says of flags, without importing it into the tests' process."""

import json
import subprocess
import sys

_CODE = """
import importlib, json, sys
from absl import flags
from absl.testing import flagsaver
binary = importlib.import_module(sys.argv[1])
for given in json.loads(sys.argv[2]):
  with flagsaver.flagsaver():
    try:
      found = flags.FLAGS(["binary", *given])
      binary.main(None, found[1:])
      said = "nothing"
    except (ValueError, OSError, flags.Error) as error:
      said = f"{type(error).__name__}: {error}"
    print(json.dumps(said))
"""


def said(binary: str, given: list[list[str]]) -> list[str]:
  """The error of each list of arguments, from one process.

  Args:
    binary: a module with `main(config, arguments)`, such as experiments.steer.
    given: arguments, of which each list has to be refused before heavy work.
  """
  done = subprocess.run(
    [sys.executable, "-c", _CODE, binary, json.dumps(given)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]
