"""What a sweep in one program saves over as many runs of one member.

Each run is `experiments.train` in a process of its own, as a user would start
it, from its start to its finished SAEs, on the quickstart's model and text.
Twice: from a store on disk, and live, where every run also runs the language
model.
"""

from __future__ import annotations

import datetime
import pathlib
import subprocess
import sys
import tempfile
import time

from experiments.benchmarks import workers

_COEFFICIENTS = (1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 3.2e-4)
_TOKENS = 65_536


def _call(binary: str, folder: pathlib.Path, *flags: str) -> float:
  """Runs a binary on the quickstart's config; its seconds."""
  start = time.perf_counter()
  subprocess.run(
    [
      sys.executable,
      "-m",
      f"experiments.{binary}",
      "--config=configs/quickstart.py",
      f"--config.workdir={folder}",
      f"--config.train.tokens={_TOKENS}",
      f"--config.harvest.rows={_TOKENS}",
      "--config.progress=False",
      *flags,
    ],
    check=True,
    stdout=subprocess.DEVNULL,
  )
  return time.perf_counter() - start


def _train(folder: pathlib.Path, source: str, coefficients) -> float:
  return _call(
    "train",
    folder,
    f"--config.data.source={source}",
    f"--config.train.sparsity_coefficients={tuple(coefficients)}",
  )


def main() -> None:
  """Measures, and prints a table for docs/benchmarks.md."""
  print(
    f"{workers.machine()}, {datetime.date.today()}, {len(_COEFFICIENTS)}"
    f" members, {_TOKENS} tokens\n"
  )
  print("| batches from | six runs, s | one sweep, s | ratio |")
  print("|---|---|---|---|", flush=True)
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    _call("harvest", root, f"--config.harvest.root={root / 'stores'}")
    store = next((root / "stores").iterdir())
    for label, source in (("a store", str(store)), ("the live model", "live")):
      sweep = _train(root / f"{label} sweep", source, _COEFFICIENTS)
      solo = sum(
        _train(root / f"{label} {index}", source, [coefficient])
        for index, coefficient in enumerate(_COEFFICIENTS)
      )
      print(
        f"| {label} | {solo:.0f} | {sweep:.0f} | {sweep / solo:.2f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
