"""Breaks two-process runs in every way, and checks that nothing is lost.

  python -m launch.drill                    # all, and docs/reliability.md's table
  python -m launch.drill --only=train --page=

Each drill starts harvesting or training as two processes on this machine, on
the packaged model, does something to them, runs the same command again and
compares every byte of store and SAE with a run that nothing happened to. Don't
commit meanwhile: files name the code's version.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import tempfile

from absl import app, flags

from gemmascope_jax import artifacts
from launch.drills import faults, rig, table

_ONLY = flags.DEFINE_string(
  "only", "", "Drills whose binary or name contains this; default: all."
)
_PAGE = flags.DEFINE_string(
  "page", "docs/reliability.md", "Page whose table to write; empty: none."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the step at which SIGTERM comes.")


def main(argv) -> None:
  """Runs the drills; exit status 1 if one fails."""
  del argv
  drills = [
    drill
    for drill in faults.every(_SEED.value)
    if _ONLY.value in drill.binary or _ONLY.value in drill.name
  ]
  if not drills:
    sys.exit(f"error: --only={_ONLY.value}: there is no such drill")
  results, version = [], artifacts.code_version()
  with tempfile.TemporaryDirectory(prefix="drills_") as name:
    folder = pathlib.Path(name)
    print("undisturbed: harvest, train", flush=True)
    reference = folder / "reference"
    rig.finish("harvest", reference)
    harvested = folder / "harvested"
    shutil.copytree(reference, harvested)
    rig.finish("train", reference)
    expected = rig.digests(reference)
    for number, drill in enumerate(drills):
      workdir = folder / f"drill_{number}"
      if drill.binary == "train":
        shutil.copytree(harvested, workdir)
      try:
        outcome = drill.run(workdir, expected)
      except rig.Hang as error:
        outcome = faults.Outcome(str(error), False, False)
      results.append((drill, outcome))
      print(
        f"{'passed' if outcome.passed else 'FAILED'}  {drill.binary}:"
        f" {drill.name}: {outcome.happened}",
        flush=True,
      )
      shutil.rmtree(workdir, ignore_errors=True)
  artifacts.code_version.cache_clear()
  if (now := artifacts.code_version()) != version:
    sys.exit(
      f"error: the code was {version} and is {now}, which files name, so that"
      " their bytes differ: run the drills again"
    )
  if _PAGE.value:
    table.write(pathlib.Path(_PAGE.value), table.rows(results))
  failed = sum(not outcome.passed for _, outcome in results)
  if failed:
    sys.exit(f"{failed} of {len(results)} drills failed")


if __name__ == "__main__":
  app.run(main)
