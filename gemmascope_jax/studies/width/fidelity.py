"""FVU and L0 on given rows, and differences between SAEs at equal L0.

Window by window, so that differences between SAEs are paired. FVU's mean is
the dataset's at the site, as the store knows it (paper, 5).

Letters: B rows of a block, D width of the site, W windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gemmascope_jax.studies.estimate import Estimate, ratio


@dataclasses.dataclass(frozen=True, eq=False)
class Fidelity:
  """One SAE on the rows of a study.

  Attributes:
    squared_error: float64 [W], sums of ||x - x_hat||^2.
    variance: float64 [W], sums of ||x - mean||^2.
    active: float64 [W], active latents.
    rows: float64 [W].
  """

  squared_error: np.ndarray
  variance: np.ndarray
  active: np.ndarray
  rows: np.ndarray

  def fvu(self) -> Estimate:
    """Fraction of variance unexplained."""
    return ratio(self.squared_error, self.variance)

  def l0(self) -> Estimate:
    """Active latents a row."""
    return ratio(self.active, self.rows)

  def influence(self) -> np.ndarray:
    """float64 [W]: what each window adds to FVU's deviation."""
    whole = self.variance.sum()
    share = self.squared_error.sum() / whole
    return (self.squared_error - share * self.variance) / whole


def covariance(found: Sequence[Fidelity]) -> np.ndarray:
  """Of the FVUs of several SAEs on the same windows: float64 [n, n]."""
  counted = found[0].rows > 0
  parts = np.stack([each.influence()[counted] for each in found])
  windows = parts.shape[1]
  if windows < 2:
    return np.full((len(found), len(found)), np.nan)
  return windows / (windows - 1) * parts @ parts.T


def at_equal_l0(one: Fidelity, others: Sequence[Fidelity]) -> Estimate | None:
  """log FVU of other SAEs less that of one, at its L0.

  log FVU of the others is interpolated linearly in log L0 between the two whose
  L0 are around the one's; nothing is extrapolated.

  Args:
    one: an SAE.
    others: SAEs of one other width, of several sparsities.

  Returns:
    The difference, below 0 if the others are better, with its paired standard
    error; None if no two of them are around the one's L0.
  """
  others = sorted(others, key=lambda each: each.l0().mean)
  target = one.l0().mean
  levels = [each.l0().mean for each in others]
  after = int(np.searchsorted(levels, target, side="right"))
  if levels and levels[-1] == target:
    after = len(levels) - 1
  if not 0 < after < len(levels) or min(levels) <= 0:
    return None
  low, high = others[after - 1], others[after]
  place = np.log(target / levels[after - 1])
  place /= np.log(levels[after] / levels[after - 1])
  parts = [(1 - place, low), (place, high), (-1.0, one)]
  if any(each.fvu().mean <= 0 for _, each in parts):
    return None
  mean = sum(w * np.log(each.fvu().mean) for w, each in parts)
  moved = sum(w * each.influence() / each.fvu().mean for w, each in parts)
  moved = moved[one.rows > 0]
  windows = len(moved)
  if windows < 2:
    return Estimate(float(mean), None, windows)
  variance = windows / (windows - 1) * np.square(moved).sum()
  return Estimate(float(mean), float(np.sqrt(variance)), windows)
