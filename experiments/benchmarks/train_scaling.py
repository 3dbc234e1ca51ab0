"""How a JumpReLU step's cost grows: with width, and with L0; one plot.

Predicted: the encoder's product and the optimizer's traffic grow with the
width, everything else of a sparse step with batch rows x L0. The lines are
fits of those laws to the measured points. Times are the fastest of several
steps: other users of a machine only ever slow a step down.
"""

from __future__ import annotations

import datetime
import pathlib
import time

import numpy as np

from experiments.benchmarks import workers

_WIDTH, _ROWS = 640, 1024
_LATENTS = tuple(2**n for n in range(12, 18))
_L0S = (12, 25, 50, 100, 200, 400)
_SECONDS, _FEWEST = 5.0, 4  # of measuring; steps
_FIGURE = pathlib.Path("docs/images/train_scaling.png")


def _seconds(latents: int, l0: int, step: str) -> float:
  """Seconds of the fastest step."""
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
  while len(found) <= _FEWEST or sum(found[1:]) < _SECONDS:
    start = time.perf_counter()
    state, _ = sweep.step_fn(recipe)(state, x, x, Knobs.of(recipe))
    jax.block_until_ready(state)
    found.append(time.perf_counter() - start)
  return min(found[1:])  # the first one compiles


def main() -> None:
  """Measures, prints a table for docs/benchmarks.md, and draws the figure."""
  print(
    f"{workers.machine()}, {datetime.date.today()}, site width {_WIDTH},"
    f" {_ROWS} rows\n"
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
  import scipy.optimize
  from matplotlib import ticker

  figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
  for axis, points, label in (
    (axes[0], by_width, "latents (L0 50)"),
    (axes[1], by_l0, "L0 (16,384 latents)"),
  ):
    at, *columns = np.array(points).T
    line = np.geomspace(at[0], at[-1])
    for seconds, name, color in zip(
      columns, ("sparse", "dense"), ("C0", "C1"), strict=True
    ):
      # Every point counts by its relative error, and no part costs less than 0.
      basis = np.stack([np.ones_like(at), at], axis=1) / seconds[:, None]
      (fixed, each), _ = scipy.optimize.nnls(basis, np.ones_like(at))
      axis.plot(at, seconds, "o", color=color)
      axis.plot(
        line,
        fixed + each * line,
        color=color,
        linewidth=1,
        label=f"{name}: {fixed:.2g} + {each:.2g} x",
      )
    axis.set(xscale="log", yscale="log", xlabel=label)
    axis.set_xticks(at, [f"{int(tick):,}" for tick in at])
    axis.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
    axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.minorticks_off()
    axis.set_ylabel("seconds a step")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
  axes[1].set_ylim(0.1, 5)
  figure.suptitle(
    f"Cost of a training step: {_ROWS} rows of width {_WIDTH}", fontsize=10
  )
  _FIGURE.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(_FIGURE, dpi=150)


if __name__ == "__main__":
  main()
