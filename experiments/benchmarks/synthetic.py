"""Do SAEs find the true directions? Every family, on data that is known.

Two problems (see `gemmascope_jax.synthetic`): 128 directions in 64 dimensions,
two orthonormal bases with cosines of at most 1/8 between them; and, harder, 512
random directions in 128 dimensions, cosines up to 0.4. SAEs have twice as many
latents as there are directions. Sparsity is set so that the true number of
latents fires: by its target where the family has one, else by a coefficient
found beforehand. "informed" knows the directions and does the best that linear
detectors with one threshold can do.

Figures are means over three seeds of truth, rows and weights, and the worst.
"""

from __future__ import annotations

import datetime
import pathlib
import tempfile

import numpy as np

from experiments.benchmarks import workers
from gemmascope_jax import sae, synthetic, training
from gemmascope_jax.sae import Recipe

_SEEDS = 3
_BATCH = 1024
_RECIPE = {
  "batch_size": _BATCH,
  "steps": 2000,
  "learning_rate": 5e-3,
  "learning_rate_warmup_steps": 100,
  "learning_rate_decay_share": 0.5,
  "adam_b1": 0.9,
  "sparsity_warmup_steps": 1500,
  "bias_init": "mean",
}
# (directions, dimensions): L0, and lambda of the families without a target.
_PROBLEMS = {
  (128, 64): (4, {"gated": 0.66, "relu": 0.82}),
  (512, 128): (3, {"gated": 0.67, "relu": 0.92}),
}


def truth(directions: int, dimensions: int, l0: float, seed: int):
  """The problem of so many directions in so many dimensions."""
  if directions == 2 * dimensions:
    found = synthetic.two_bases(dimensions, seed)
  else:
    found = synthetic.random_directions(directions, dimensions, seed)
  return synthetic.Truth(found, l0, seed)


def recipes(directions: int, l0: int, coefficients: dict) -> list[Recipe]:
  """One member a family."""
  shared = _RECIPE | {"width": 2 * directions}
  return [
    Recipe(
      family="jumprelu",
      sparsity_loss="l0_target",
      target_l0=l0,
      sparsity_coefficient=1.0,
      threshold_init_l0=20,
      bandwidth=0.2,
      **shared,
    ),
    *(
      Recipe(family=family, sparsity_coefficient=coefficient, **shared)
      for family, coefficient in coefficients.items()
    ),
    *(
      Recipe(family=family, k=l0, **shared) for family in ("topk", "batch_topk")
    ),
  ]


def _recovered(directions, dimensions, l0, coefficients, seed) -> dict:
  """Every family's `Recovery` from one seed."""
  members = recipes(directions, l0, coefficients)
  known = truth(directions, dimensions, l0, seed)
  found = {"informed": synthetic.recovery(synthetic.informed(known), known)}
  with tempfile.TemporaryDirectory() as folder:
    paths = training.train(
      synthetic.Stream(known, _BATCH),
      members,
      pathlib.Path(folder),
      seed=seed,
      schedule=training.Schedule(progress=False),
    )
    for recipe, path in zip(members, paths, strict=True):
      found[recipe.family] = synthetic.recovery(sae.load(path), known)
  return found


def main() -> None:
  """Trains, and prints a table for docs/benchmarks.md."""
  print(f"{workers.machine()}, {datetime.date.today()}, {_SEEDS} seeds\n")
  print(
    "| directions | true L0 | family | L0 | cosine (worst) | F1 (worst) | FVU |"
  )
  print("|---|---|---|---|---|---|---|", flush=True)
  for (directions, dimensions), (l0, coefficients) in _PROBLEMS.items():
    seeds = [
      _recovered(directions, dimensions, l0, coefficients, seed)
      for seed in range(_SEEDS)
    ]
    for family in seeds[0]:
      values = np.asarray([found[family] for found in seeds])
      mean, worst = values.mean(axis=0), values.min(axis=0)
      print(
        f"| {directions} in {dimensions} | {l0} | {family} | {mean[2]:.2f} |"
        f" {mean[0]:.3f} ({worst[0]:.3f}) | {mean[1]:.3f} ({worst[1]:.3f}) |"
        f" {mean[3]:.3f} |",
        flush=True,
      )
