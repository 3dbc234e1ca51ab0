"""What precision of the step's products costs: FVU, L0, seconds.

The same members, from the same seeds and on the same batches of real
activations, in each precision that differs on this device (see
`sae.precision`), all measured in float32 on the same held-out rows. Differences
are paired by seed; their standard error is over seeds. The recipe is that of
`train_quality`.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import tempfile
import time

import numpy as np

from experiments.benchmarks import real_rows, train_quality, workers

_SEEDS = 3
_RATE, _LAMBDA = 2e-3, 7e-5


def _precisions() -> tuple[str, ...]:
  import jax

  if jax.default_backend() == "cpu":  # the others are float32 there
    return ("highest", "bfloat16")
  return ("highest", "high", "default", "bfloat16")


def _trained(precision: str, stream, folder: pathlib.Path) -> tuple:
  """([seeds, 2]: L0 and FVU; seconds a step and member)."""
  from gemmascope_jax import training

  recipe = train_quality.recipe("jumprelu", _RATE, _LAMBDA)
  recipe = dataclasses.replace(recipe, matmul_precision=precision)
  start = time.perf_counter()
  folders = training.train(
    stream,
    [dataclasses.replace(recipe, seed=seed) for seed in range(_SEEDS)],
    folder,
    schedule=training.Schedule(log_every=50, checkpoint_every=recipe.steps),
  )
  seconds = (time.perf_counter() - start) / recipe.steps / _SEEDS
  found = [real_rows.measured_member(f, stream)[:2] for f in folders]
  return np.asarray(found), seconds


def main() -> None:
  """Trains, and prints a table for docs/benchmarks.md."""
  from gemmascope_jax.data.policy import TokenPolicy

  print(f"{workers.machine()}, {datetime.date.today()}, {_SEEDS} seeds\n")
  print("| precision | L0 | FVU | change of L0 | change of FVU | s a step |")
  print("|---|---|---|---|---|---|", flush=True)
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name) / "rows.npy"
    real_rows.write_rows(path)
    policy = TokenPolicy(excluded_ids=(0, 1, 2), pad_id=0)
    stream = real_rows.Rows(path, policy)
    exact = None
    for precision in _precisions():
      found, seconds = _trained(
        precision, stream, pathlib.Path(name) / precision
      )
      exact = found if exact is None else exact
      change = found - exact
      error = change.std(axis=0, ddof=1) / _SEEDS**0.5
      (l0, fvu), by = found.mean(axis=0), change.mean(axis=0)
      print(
        f"| {precision} | {l0:.2f} | {fvu:.5f} | {by[0]:+.2f} ± {error[0]:.2f} |"
        f" {by[1]:+.5f} ± {error[1]:.5f} | {seconds:.3f} |",
        flush=True,
      )
