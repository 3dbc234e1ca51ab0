"""Which sparsity coefficient gives a wanted L0.

Users think in L0, the loss in lambda. Short runs at a few lambdas, all on one
stream, say which L0 each gives; log L0 falls along log lambda, and a monotone
line through the points is read backwards. A first round is spread wide, later
ones go where the wanted L0s are expected.

A short run is not a long one: L0 may go on changing. How much it changed at the
end of the short runs is part of the uncertainty that is given.

Letters: P points, each a short run.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import metrics
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.training import roster, run
from gemmascope_jax.training.schedule import Schedule

_LINES = 40  # of each short run
_FIRST_ROUND = (0.1, 0.3, 1.0, 3.0, 10.0)  # times the recipe's own lambda
_CLOSE_ENOUGH = 0.05  # of a measured L0 to a wanted one
_FARTHEST = 10.0  # times a lambda that has been tried
_LEAST_L0 = 1e-2  # below it, log L0 says nothing
_ROUNDING = 1e-9  # of an L0 that went through its log
_LEAST_SLOPE = 0.1  # of log L0, where points are level


class Point(NamedTuple):
  """What one short run gave.

  Attributes:
    sparsity_coefficient: its lambda.
    l0: mean over the last quarter of its steps.
    before: mean over the quarter before.
  """

  sparsity_coefficient: float
  l0: float
  before: float


class Found(NamedTuple):
  """The lambda for a wanted L0.

  Attributes:
    l0: the wanted one.
    sparsity_coefficient: the lambda expected to give it.
    low: a lambda that is lower by one standard error ...
    high: ... and one that is higher.
    reached: the smallest and the largest L0 that the line through the runs has.
  """

  l0: float
  sparsity_coefficient: float
  low: float
  high: float
  reached: tuple[float, float]

  @property
  def extrapolated(self) -> bool:
    """Whether `l0` is outside `reached`: then the error may be far larger."""
    least, most = self.reached
    return not least * (1 - _ROUNDING) <= self.l0 <= most * (1 + _ROUNDING)


def calibrate(
  stream,
  recipe: Recipe,
  l0s: Sequence[float],
  folder: str | os.PathLike,
  *,
  steps: int,
  rounds: int = 3,
  seed: int = 0,
  mesh: Mesh | None = None,
  progress: bool = True,
) -> list[Found]:
  """Trains short runs and reads lambdas off them.

  Args:
    stream: see `gemmascope_jax.data.streams.stream`.
    recipe: how the SAEs will be trained; its lambda is where to begin.
    l0s: wanted, positive.
    folder: of the short runs; if it is there, it is gone on with.
    steps: of a short run; warm-ups are shortened by the same factor.
    rounds: how often lambdas are chosen anew, the first time included.
    seed: see `run.train`.
    mesh: devices.
    progress: show progress bars.

  Returns:
    One for each of `l0s`, in their order.

  Raises:
    ValueError: a wanted L0 that can't be, or a recipe whose L0 is not lambda's.
  """
  _check(recipe, l0s)
  short = shortened(recipe, steps)
  schedule = Schedule(
    log_every=max(1, steps // _LINES), keep_checkpoints=1, progress=progress
  )
  recipes: list[Recipe] = []
  points: list[Point] = []
  for _ in range(rounds):
    new = [_with(short, value) for value in _next(recipe, l0s, points)]
    # Out of reach, several L0s may ask for the same.
    new = [each for each in dict.fromkeys(new) if each not in recipes]
    if not new:
      break
    recipes += new
    run.train(stream, recipes, folder, seed=seed, schedule=schedule, mesh=mesh)
    points = _points(folder, recipes)
  return [read(points, l0) for l0 in l0s]


def shortened(recipe: Recipe, steps: int) -> Recipe:
  """The recipe with fewer steps, and warm-ups shorter by the same factor."""
  if steps >= recipe.steps:
    return recipe
  warmups = ("learning_rate_warmup_steps", "sparsity_warmup_steps")
  return dataclasses.replace(
    recipe,
    steps=steps,
    **{
      name: round(getattr(recipe, name) * steps / recipe.steps)
      for name in warmups
    },
  )


def read(points: Sequence[Point], l0: float) -> Found:
  """The lambda for a wanted L0, from what runs gave; at least two of them.

  No farther than ten times beyond the lambdas that were tried: what an L0 that
  no run came near needs is not known. The standard error of a run's log L0 is how much it changed between the last
  two quarters of its steps, and how far it is from a line that only falls.
  """
  points = sorted(points)
  log = lambda values: np.log(np.maximum(values, _LEAST_L0))
  x = np.log([point.sparsity_coefficient for point in points])
  y, before = (log([getattr(p, of) for p in points]) for of in ("l0", "before"))
  line, wanted = _falling(y), np.log(l0)
  errors = np.hypot(y - before, y - line)
  error = errors[np.abs(line - wanted).argsort()[:2]].max()
  farthest = np.log(_FARTHEST)
  bounds = x[0] - farthest, x[-1] + farthest
  at = lambda value: float(np.exp(np.clip(_inverse(x, line, value), *bounds)))
  return Found(
    l0=l0,
    sparsity_coefficient=at(wanted),
    low=at(wanted + error),
    high=at(wanted - error),
    reached=(float(np.exp(line[-1])), float(np.exp(line[0]))),
  )


def _falling(y: np.ndarray) -> np.ndarray:
  """The least-squares fit to [P] that never rises (pool adjacent violators)."""
  pools: list[tuple[float, int]] = []
  for value in y:
    pools.append((value, 1))
    while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
      (last, n), (value, m) = pools.pop(), pools.pop()
      pools.append(((last * n + value * m) / (n + m), n + m))
  return np.repeat([value for value, _ in pools], [n for _, n in pools])


def _inverse(x: np.ndarray, line: np.ndarray, value: float) -> float:
  """Where a falling line through points has a value; straight beyond them."""
  if line[-1] <= value <= line[0]:
    return float(np.interp(value, line[::-1], x[::-1]))
  end, next_to = (0, 1) if value > line[0] else (-1, -2)
  slope = (line[end] - line[next_to]) / (x[end] - x[next_to])
  return x[end] + (value - line[end]) / min(slope, -_LEAST_SLOPE)


def _next(
  recipe: Recipe, l0s: Sequence[float], points: Sequence[Point]
) -> list[float]:
  """The lambdas of the next round."""
  if not points:
    return [recipe.sparsity_coefficient * factor for factor in _FIRST_ROUND]
  return [
    read(points, l0).sparsity_coefficient
    for l0 in l0s
    if all(abs(point.l0 / l0 - 1) > _CLOSE_ENOUGH for point in points)
  ]


def _with(recipe: Recipe, sparsity_coefficient: float) -> Recipe:
  value = float(f"{sparsity_coefficient:.3g}")
  return dataclasses.replace(recipe, sparsity_coefficient=value)


def _points(folder, recipes: Sequence[Recipe]) -> list[Point]:
  """What short runs that have finished gave, from their logs."""
  lines = metrics.read_jsonl(pathlib.Path(folder) / run.METRICS)
  found = []
  for member in roster.members(folder, recipes):
    of = [line for line in lines if line["name"] == member.name]
    quarter = max(1, len(of) // 4)
    mean = lambda part: float(np.mean([line["l0_mean"] for line in part]))
    found.append(
      Point(
        member.recipe.sparsity_coefficient,
        l0=mean(of[-quarter:]),
        before=mean(of[-2 * quarter : -quarter] or of),
      )
    )
  return found


def _check(recipe: Recipe, l0s: Sequence[float]) -> None:
  if recipe.family in ("topk", "batch_topk") or recipe.sparsity_loss != "l0":
    raise ValueError(
      f"{recipe.name}: its L0 is set, not found by a lambda; calibrate a recipe"
      " with sparsity_loss 'l0'"
    )
  if not recipe.sparsity_coefficient > 0:
    raise ValueError(
      "recipe.sparsity_coefficient is 0; give one near which to begin"
    )
  for l0 in l0s:
    if not 0 < l0 < recipe.width:
      raise ValueError(
        f"an L0 of {l0:g} is wanted; expected one between 0 and the width,"
        f" {recipe.width}"
      )
