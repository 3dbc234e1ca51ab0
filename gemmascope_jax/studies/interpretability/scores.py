"""How well simulated activations match the true ones.

Three scores of a latent, each over its held-out contexts with a standard error
over contexts:

  simulation  Pearson correlation over all counted tokens
  detection   area under the ROC curve: does the largest predicted activation
              of a context tell those in which the latent fires?
  fuzzing     the same over tokens of contexts in which it fires: does the
              prediction tell the tokens on which it fires from the others?

The standard error is the jackknife's, leaving out one context at a time:

  se^2 = (n - 1) / n * sum_c (r_(-c) - mean r_(-c))^2.

Letters: C contexts, T tokens in a context, n simulated contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gemmascope_jax.studies.estimate import Estimate


def simulation(
  true: Sequence[np.ndarray], simulated: Sequence[np.ndarray]
) -> Estimate | None:
  """Pearson correlation of all tokens together.

  Args:
    true: float [t], activations at the counted tokens of each context.
    simulated: the same, predicted.

  Returns:
    The correlation. A prediction that is the same everywhere explains nothing:
    it scores 0. None: the latent fires at none of these tokens (or equally at
    all), so that there is nothing to correlate with.
  """
  sums = np.array([_sums(x, y) for x, y in _centred(true, simulated)])
  if not len(sums):
    return None
  total = sums.sum(axis=0)
  mean = _correlation(total)
  if mean is None:
    return None
  left = [_correlation(total - each) for each in sums]
  return Estimate(mean, _jackknife(left), len(sums))


def is_constant(simulated: Sequence[np.ndarray]) -> bool:
  """Whether the same was predicted at every token."""
  values = np.concatenate([np.asarray(x, np.float64) for x in simulated])
  return bool(len(values)) and bool(np.ptp(values) == 0)


def detection(
  true: Sequence[np.ndarray], simulated: Sequence[np.ndarray]
) -> Estimate | None:
  """AUROC over contexts; args as in `simulation`.

  Returns:
    0.5 is chance; None: the latent fires in all of the contexts, or in none.
  """
  pairs = [
    (np.array([np.max(y)]), np.array([np.max(x) > 0]))
    for x, y in zip(true, simulated, strict=True)
    if len(x)
  ]
  return _auroc_over(pairs)


def fuzzing(
  true: Sequence[np.ndarray], simulated: Sequence[np.ndarray]
) -> Estimate | None:
  """AUROC over tokens of contexts that activate; args as in `simulation`.

  Returns:
    0.5 is chance; None: no such context, or no token on which it is silent.
  """
  pairs = [
    (np.asarray(y, np.float64), np.asarray(x) > 0)
    for x, y in zip(true, simulated, strict=True)
    if np.any(np.asarray(x) > 0)
  ]
  return _auroc_over(pairs)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
  """Chance that a positive's score is above a negative's; ties count half.

  Args:
    scores: float [n].
    labels: bool [n].

  Returns:
    None if all labels are equal.
  """
  from scipy import stats

  positive = int(labels.sum())
  negative = len(labels) - positive
  if not positive or not negative:
    return None
  ranks = stats.rankdata(np.asarray(scores, np.float64))
  above = ranks[labels].sum() - positive * (positive + 1) / 2
  return float(above / (positive * negative))


def _auroc_over(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Estimate | None:
  """From (scores, labels) of each context."""
  if not pairs:
    return None

  def of(chosen):
    if not chosen:
      return None
    return auroc(*(np.concatenate(part) for part in zip(*chosen, strict=True)))

  mean = of(pairs)
  if mean is None:
    return None
  return Estimate(mean, _leave_one_out(pairs, of), len(pairs))


def _leave_one_out(items: list, of: Callable) -> float | None:
  return _jackknife([of(items[:i] + items[i + 1 :]) for i in range(len(items))])


def _jackknife(left: list[float | None]) -> float | None:
  """None for one context, or if a single one decides whether there is a score."""
  if len(left) < 2 or any(value is None for value in left):
    return None
  values = np.array(left, np.float64)
  n = len(values)
  spread = np.square(values - values.mean()).sum()
  return float(np.sqrt((n - 1) / n * spread))


def _centred(true, simulated) -> list[tuple[np.ndarray, np.ndarray]]:
  """float64, less the mean of all: keeps the sums free of cancellation."""
  true = [np.asarray(x, np.float64) for x in true]
  simulated = [np.asarray(y, np.float64) for y in simulated]
  if not sum(map(len, true)):
    return []
  # In units of the largest, so that squares neither overflow nor vanish.
  x_mean, x_scale = _place(true)
  y_mean, y_scale = _place(simulated)
  return [
    ((x - x_mean) / x_scale, (y - y_mean) / y_scale)
    for x, y in zip(true, simulated, strict=True)
  ]


def _place(parts: list[np.ndarray]) -> tuple[float, float]:
  values = np.concatenate(parts)
  if np.ptp(values) == 0:  # so that rounding of the mean is no variation
    return float(values[0]), 1.0
  mean = values.mean()
  return float(mean), float(np.abs(values - mean).max())


def _sums(x: np.ndarray, y: np.ndarray) -> list[float]:
  return [len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y]


def _correlation(sums: np.ndarray) -> float | None:
  """From sums of 1, x, y, x^2, y^2, xy; None if x does not vary."""
  n, x, y, xx, yy, xy = sums
  if n < 2:
    return None
  # Rounding, relative to what the sums were, is no variation.
  tiny = 1e-12 * n
  x_var, y_var = xx - x * x / n, yy - y * y / n
  if x_var <= tiny * np.finfo(np.float32).eps:
    return None
  if y_var <= tiny * np.finfo(np.float32).eps:
    return 0.0
  return float(np.clip((xy - x * y / n) / np.sqrt(x_var * y_var), -1, 1))
