"""Parses commands of our binaries as they would, and checks their configs.

`python -m tests.parse_commands FILE`: a list of [module, argument, ...] in JSON.
Libraries are imported once; each binary defines its flags in a fork.
"""

import collections
import functools
import json
import os
import pathlib
import runpy
import sys

from absl import app, flags

import gemmascope_jax.experiment
import gemmascope_jax.report
import gemmascope_jax.sae.train_step  # noqa: F401
from gemmascope_jax.experiment import runs, settings
from tests import forked


def main() -> None:
  """Reads, forks, counts; exit status 1 if a command is wrong."""
  commands = json.loads(pathlib.Path(sys.argv[1]).read_text())
  by_module = collections.defaultdict(list)
  for module, *arguments in commands:
    # Another command would have written the file of flags.
    given = [each for each in arguments if not each.startswith("--flagfile=")]
    by_module[module].append(given)
  wrong = sum(
    forked.status_of(functools.partial(_parse, module, every)) != 0
    for module, every in by_module.items()
  )
  print(f"{len(commands)} commands of {len(by_module)} binaries, {wrong} wrong")
  sys.exit(bool(wrong))


def _parse(module: str, every: list[list[str]]) -> None:
  def run(binary_main, argv=None, flags_parser=flags.FLAGS):
    del binary_main, argv
    # Flags of configs can be parsed but once.
    wrong = sum(
      forked.status_of(functools.partial(check, flags_parser, arguments)) != 0
      for arguments in every
    )
    os._exit(wrong)

  def check(parser, arguments):
    try:
      sys.argv = [module, *arguments]  # where configs look for overrides
      parser(sys.argv)
    except BaseException as error:
      said = f"{module} {' '.join(arguments)}: {error}"
      raise AssertionError(said) from error
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    if config is not None and "runs" in config:
      for each in runs.runs(config).values():
        settings.check(each)

  app.run = run
  sys.argv = [module]
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
