"""Means and ratios over tokens, with standard errors over sequences.

Tokens of one sequence are not independent, so the sampling unit is the
sequence. Every headline number is a ratio of sums over sequences, R = A / B:
a token mean has B = number of tokens, FVU has B = the variance. Its standard
error is the usual one of a ratio estimator (delta method),

  se^2 = n / (n - 1) * sum_s (a_s - R b_s)^2 / B^2,   n sequences.

Sums are float64, so batching and order don't matter.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number and how sure it is.

  Attributes:
    mean: the estimate.
    stderr: one standard error over sequences; None for a single sequence.
    n: sequences that count.
  """

  mean: float
  stderr: float | None
  n: int

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready form."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    error = "?" if self.stderr is None else f"{self.stderr:.2g}"
    return f"{self.mean:.4g} ± {error} (n = {self.n})"


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
  """sum(numerators) / sum(denominators), over sequences.

  Args:
    numerators: float [n], each sequence's sum.
    denominators: float [n], its weight; sequences of weight 0 are left out.

  Returns:
    The ratio and its standard error.

  Raises:
    ValueError: no sequence has weight.
  """
  numerators = np.asarray(numerators, np.float64)
  denominators = np.asarray(denominators, np.float64)
  counted = denominators != 0
  numerators, denominators = numerators[counted], denominators[counted]
  n = len(denominators)
  if n == 0:
    raise ValueError(
      "nothing to average: no sequence has a token that counts under this"
      " token policy"
    )
  total = denominators.sum()
  mean = numerators.sum() / total
  if n == 1:
    return Estimate(float(mean), None, n)
  residual = numerators - mean * denominators
  variance = n / (n - 1) * np.square(residual).sum() / total**2
  return Estimate(float(mean), float(np.sqrt(variance)), n)
