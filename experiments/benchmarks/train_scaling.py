"""How a JumpReLU step's cost grows: with width, and with L0; one plot.

Predicted: the encoder's product and the optimizer's traffic grow with the
width, everything else of a sparse step with batch rows x L0. The lines are
least-squares fits of those two laws to the measured points.
"""

from __future__ import annotations

import datetime
import pathlib
import statistics
import time

import numpy as np

from experiments.benchmarks import workers

_WIDTH, _ROWS = 640, 1024
_LATENTS = tuple(2**n for n in range(12, 18))
_L0S = (12, 25, 50, 100, 200, 400)
_ROUNDS = 3
_FIGURE = pathlib.Path("docs/images/train_scaling.png")


def _seconds(latents: int, l0: int, step: str) -> float:
  """Median seconds of a step."""
  import jax
  import jax.numpy as jnp

  from gemmascope_jax.sae import sweep
  from gemmascope_jax.sae.config import Recipe
  from gemmascope_jax.sae.families.dictionary import Sample
  from gemmascope_jax.sae.train_step import Knobs

  recipe = Recipe(
    width=latents,
    batch_size=_ROWS,
    steps=10**6,
    threshold_init_l0=l0,
    step=step,
  )
  x = np.random.default_rng(0).standard_normal((_ROWS, _WIDTH), np.float32)
  x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))
  mean = x.mean(axis=0)
  state = sweep.init_fn(recipe)(jax.random.key(0), Sample(x, x, mean, mean))
  state = jax.tree.map(jnp.copy, state)
  found = []
  for _ in range(_ROUNDS + 1):
    start = time.perf_counter()
    state, _ = sweep.step_fn(recipe)(state, x, x, Knobs.of(recipe))
    jax.block_until_ready(state)
    found.append(time.perf_counter() - start)
  return statistics.median(found[1:])  # the first one compiles


def main() -> None:
  """Measures, prints a table for docs/benchmarks.md, and draws the figure."""
  print(
    f"{workers.machine()}, {datetime.date.today()}, site width {_WIDTH},"
    f" {_ROWS} rows, median of {_ROUNDS}\n"
  )
  print("| latents | L0 | sparse step, s | dense step, s | ratio |")
  print("|---|---|---|---|---|", flush=True)
  by_width = [(m, 50) for m in _LATENTS]
  by_l0 = [(2**14, l0) for l0 in _L0S]
  found = {}
  for latents, l0 in dict.fromkeys(by_width + by_l0):
    pair = [_seconds(latents, l0, kind) for kind in ("sparse", "dense")]
    found[latents, l0] = pair
    print(
      f"| {latents} | {l0} | {pair[0]:.3f} | {pair[1]:.3f} |"
      f" {pair[1] / pair[0]:.1f} |",
      flush=True,
    )
  _draw(
    [(m, *found[m, l0]) for m, l0 in by_width],
    [(l0, *found[m, l0]) for m, l0 in by_l0],
  )
  print(f"\n{_FIGURE}")


def _draw(by_width, by_l0) -> None:
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
  for axis, points, label in (
    (axes[0], by_width, "latents (L0 50)"),
    (axes[1], by_l0, "L0 (16,384 latents)"),
  ):
    points = np.array(points)
    at = points[:, 0]
    for column, name, color in ((1, "sparse", "C0"), (2, "dense", "C1")):
      seconds = points[:, column]
      # Weighted so that every point counts by its relative error.
      basis = np.stack([np.ones_like(at), at], axis=1) / seconds[:, None]
      fit, *_ = np.linalg.lstsq(basis, np.ones_like(at), rcond=None)
      axis.plot(at, seconds, "o", color=color, label=name)
      axis.plot(
        at,
        fit[0] + fit[1] * at,
        color=color,
        linewidth=1,
        label=f"{name}: {fit[0]:.2g} + {fit[1]:.2g} x",
      )
    axis.set(xscale="log", yscale="log", xlabel=label)
    axis.set_ylabel("seconds a step")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
  figure.suptitle(
    f"Cost of a training step: {_ROWS} rows of width {_WIDTH}", fontsize=10
  )
  _FIGURE.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(_FIGURE, dpi=150)


if __name__ == "__main__":
  main()
