"""Whether an SAE still does what was once measured of it.

On the same sequences the difference of two readings is paired: text, model and
SAE are the same, so nothing but rounding can remain of it. On other sequences
it may be as large as sampling makes it.

Letters: S sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from gemmascope_jax.studies.estimate import (
  Estimate,
  paired_difference,
  ratio,
)
from gemmascope_jax.studies.reconstruction import Reading

# Of a metric's value: what another device, or another order of sums, may change
# in it. A latent at its threshold fires on one device and not on the other.
ROUNDING = {"float32": 1e-3, "bfloat16": 3e-2}
SURE = 4.0  # standard errors that other text may make


@dataclasses.dataclass(frozen=True)
class Agreement:
  """One metric, then and now.

  Attributes:
    metric: "L0" or "FVU".
    before: on the sequences compared.
    now: the same.
    difference: now less before; paired if `paired`.
    allowed: how large it may be.
    paired: whether the sequences are the same.
  """

  metric: str
  before: Estimate
  now: Estimate
  difference: Estimate
  allowed: float
  paired: bool

  @property
  def holds(self) -> bool:
    """Whether the difference is no larger than it may be."""
    return abs(self.difference.mean) <= self.allowed

  def __str__(self) -> str:
    then, now, gap = self.before, self.now, f"{self.difference.mean:+.2g}"
    if self.paired:
      return (
        f"{self.metric} {now.mean:.4g} (card {then.mean:.4g}, paired difference"
        f" {gap}, at most {self.allowed:.1g})"
      )
    return (
      f"{self.metric} {now} (card {then}, difference {gap}, at most"
      f" {self.allowed:.2g}: {SURE:g} standard errors)"
    )


def keys(tokens: np.ndarray) -> list[str]:
  """A hash of each sequence of int [S, T]."""
  rows = np.ascontiguousarray(tokens, "<i4")
  return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows]


def shared(before: Sequence[str], now: Sequence[str]) -> np.ndarray | None:
  """Where each of the sequences now was before: int [S].

  Args:
    before: `keys` then.
    now: `keys` now.

  Returns:
    None if one of them was not there.
  """
  place = {key: index for index, key in enumerate(before)}
  found = [place.get(key) for key in now]
  return None if None in found else np.array(found, np.int64)


def compare(
  before: Reading, now: Reading, where: np.ndarray | None, dtype: str
) -> list[Agreement]:
  """L0 and FVU, then and now.

  Args:
    before: the reading then.
    now: the reading now; if paired, with the variance about `before.mean`.
    where: `shared` of the sequences; None: they are not the same.
    dtype: in which the language model computes.
  """
  found = []
  for metric, above, below in (
    ("L0", "active", "count"),
    ("FVU", "squared_error", "variance"),
  ):
    old = [getattr(before, name) for name in (above, below)]
    new = [getattr(now, name) for name in (above, below)]
    if where is not None:
      old = [each[where] for each in old]
    then, this = ratio(*old), ratio(*new)
    if where is not None:
      difference = paired_difference(*new, *old)
      allowed = ROUNDING[dtype] * abs(then.mean)
    else:
      error = float(np.hypot(then.stderr or 0, this.stderr or 0))
      difference = Estimate(this.mean - then.mean, error, this.n)
      # TopK's L0 has no error at all.
      allowed = max(SURE * error, ROUNDING[dtype] * abs(then.mean))
    found.append(
      Agreement(metric, then, this, difference, allowed, where is not None)
    )
  return found
