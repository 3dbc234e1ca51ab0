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


def combination(
  coefficients: np.ndarray, numerators: np.ndarray, denominators: np.ndarray
) -> Estimate:
  """A linear combination of ratios that share their sequences.

  A trend over SAEs is one, and so is a difference: what the ratios have in
  common, the text above all, cancels in each sequence's residual,

    e_s = sum_k c_k (a_ks - R_k b_ks) / B_k,   se^2 = n / (n - 1) sum_s e_s^2.

  Args:
    coefficients: float [K].
    numerators: float [K, n], each ratio's sums of each sequence.
    denominators: float [K, n], their weights. A sequence of weight 0 in all
      ratios is left out.

  Returns:
    sum_k c_k R_k and its standard error over sequences.

  Raises:
    ValueError: shapes that do not fit, or a ratio without weight.
  """
  c = np.asarray(coefficients, np.float64)
  a = np.asarray(numerators, np.float64)
  b = np.asarray(denominators, np.float64)
  if a.shape != b.shape or a.shape[:1] != c.shape or a.ndim != 2:
    raise ValueError(
      f"coefficients, numerators and denominators have shapes {c.shape},"
      f" {a.shape} and {b.shape}: expected [K], [K, n] and [K, n]"
    )
  counted = (b != 0).any(axis=0)
  a, b = a[:, counted], b[:, counted]
  n, total = b.shape[1], b.sum(axis=1)
  if n == 0 or not total.all():
    raise ValueError(
      "nothing to average: no sequence has a token that counts under this"
      " token policy"
    )
  ratios = a.sum(axis=1) / total
  mean = float(c @ ratios)
  if n == 1:
    return Estimate(mean, None, n)
  weights = (c / total)[:, None]
  residual = (weights * (a - ratios[:, None] * b)).sum(axis=0)
  variance = n / (n - 1) * np.square(residual).sum()
  return Estimate(mean, float(np.sqrt(variance)), n)


def paired_difference(
  numerators: np.ndarray,
  denominators: np.ndarray,
  other_numerators: np.ndarray,
  other_denominators: np.ndarray,
) -> Estimate:
  """One ratio less another over the same sequences, with its standard error.

  Args:
    numerators: float [n], each sequence's sum of the first ratio.
    denominators: float [n], its weight.
    other_numerators: float [n], the same of the ratio that is subtracted.
    other_denominators: float [n].

  Returns:
    sum(numerators) / sum(denominators) less that of the others; see
    `combination`.
  """
  return combination(
    np.array([1.0, -1.0]),
    np.stack([numerators, other_numerators]),
    np.stack([denominators, other_denominators]),
  )
