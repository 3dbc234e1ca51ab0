"""What error remains at every width, and how much of it is linear in x.

Dark matter is what an SAE does not reconstruct. Two questions of Engels et
al., "Decomposing the dark matter of sparse autoencoders" (2024): what is left
at infinite width, the a of

  FVU(M) = a + b M^-c,   a, b >= 0,

and how much of the error could be predicted from the input by a linear map, by
ridge regression that is judged on windows that it was not fitted on.

Letters: M latents, K widths, B rows of a block, D width of the site, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used: optimize takes .5 s

from gemmascope_jax.studies.estimate import Estimate, ratio

LEAST_WIDTHS = 4  # one more than the law has parameters
_EXPONENTS = (0.02, 4.0)
_DRAWS = 200
_LEVEL = 0.9
_RIDGE = 1e-3
_TRAIN_ROWS, _TEST_ROWS = 50_000, 8_192


def fit(
  widths: Sequence[int],
  fvu: Sequence[float],
  covariance: np.ndarray,
  draws: int = _DRAWS,
) -> dict[str, Any]:
  """Fits FVU(M) = a + b M^-c, by least squares weighted with the errors.

  a and b are linear, so only c is searched for. The 90 % intervals are the
  quantiles of fits to FVUs drawn from a normal distribution about the fitted
  ones (parametric bootstrap), with the covariance that their common windows
  give them.

  Args:
    widths: K.
    fvu: K.
    covariance: float64 [K, K], of the FVUs.
    draws: of the bootstrap.

  Returns:
    JSON-ready {"a", "b", "c": {"value", "low", "high"}, "level", "fitted"};
    or {"refused": why} for fewer than 4 different widths or no covariance.
    b is that of M itself: FVU = a + b M^-c.
  """
  different = len(set(widths))
  if different < LEAST_WIDTHS:
    return {
      "refused": (
        f"{different} widths: a law of three parameters needs at least"
        f" {LEAST_WIDTHS}"
      )
    }
  variance = np.diag(covariance)
  if not (np.isfinite(covariance).all() and (variance > 0).all()):
    return {
      "refused": "the FVUs have no standard errors: look at more sequences"
    }
  widths = np.asarray(widths, np.float64)
  unit = np.exp(np.log(widths).mean())
  weights = 1 / np.sqrt(variance)
  point = _fit(widths / unit, np.asarray(fvu, np.float64), weights)
  fitted = point[0] + point[1] * (widths / unit) ** -point[2]
  rng = np.random.default_rng(0)
  drawn = rng.multivariate_normal(
    fitted, covariance, size=draws, check_valid="ignore"
  )
  fits = np.array([_fit(widths / unit, each, weights) for each in drawn])
  scale = lambda p: np.stack(
    [p[..., 0], p[..., 1] * unit ** p[..., 2], p[..., 2]], axis=-1
  )
  point, fits = scale(np.array(point)), scale(fits)
  tails = [50 * (1 - _LEVEL), 50 * (1 + _LEVEL)]
  low, high = np.percentile(fits, tails, axis=0)
  return {
    name: {"value": float(v), "low": float(a), "high": float(b)}
    for name, v, a, b in zip("abc", point, low, high, strict=True)
  } | {"level": _LEVEL, "fitted": fitted.tolist()}


def _fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray):
  """(a, b, c) of y = a + b x^-c."""
  found = scipy.optimize.minimize_scalar(
    lambda log_c: _linear(x, y, weights, np.exp(log_c))[0],
    bounds=tuple(np.log(_EXPONENTS)),
    method="bounded",
    options={"xatol": 1e-6},
  )
  exponent = float(np.exp(found.x))
  _, a, b = _linear(x, y, weights, exponent)
  return a, b, exponent


def _linear(x, y, weights, exponent):
  """(squared error, a, b) of the best a, b >= 0 at an exponent."""
  design = np.stack([weights, weights * x**-exponent], axis=1)
  (a, b), error = scipy.optimize.nnls(design, weights * y)
  return error**2, a, b


class LinearError:
  """How much of SAEs' errors is linear in x; see the module.

  The last quarter of the groups of windows is held out. Rows are thinned to
  50,000 to fit on and 8,192 to judge on, which are kept in memory: D floats
  each, and as many of each SAE's error.
  """

  def __init__(self, width: int, names: Sequence[str], sample):
    """Nothing seen yet; D = `width`, errors of SAEs called `names`."""
    self._held = max(round(sample.groups * 0.75), 1)
    bounds = sample.bounds
    train = bounds[self._held] if sample.groups > 1 else 0
    self._every = (
      max(-(-train // _TRAIN_ROWS), 1),
      max(-(-(sample.rows - train) // _TEST_ROWS), 1),
    )
    self._possible = train > width
    self._moments = np.zeros((width + 1, width + 1))
    self._cross = {name: np.zeros((width + 1, width + 1)) for name in names}
    self._x: list[np.ndarray] = []
    self._windows: list[np.ndarray] = []
    self._errors: dict[str, list[np.ndarray]] = {name: [] for name in names}

  def add(self, block, errors: dict[str, np.ndarray]) -> None:
    """Adds a block, with each SAE's error float32 [B, D]."""
    if not self._possible:
      return
    is_test = block.group >= self._held
    every = self._every[is_test]
    some = slice(-block.start % every, None, every)
    if is_test:
      self._x.append(np.array(block.x[some], np.float32))
      self._windows.append(block.windows[some])
      for name, error in errors.items():
        self._errors[name].append(np.array(error[some], np.float32))
      return
    x = _with_one(block.x[some])
    self._moments += x.T @ x
    for name, error in errors.items():
      self._cross[name] += x.T @ _with_norm(error[some])

  def finish(self) -> dict[str, dict[str, Estimate | None]] | None:
    """By SAE, shares of held-out variance that x predicts; 1 is all.

    Returns:
      {"norm": of ||e||, "vector": of e} by name, None where there is no error;
      None with one group of windows, or fewer rows to fit on than numbers.
    """
    if not (self._possible and self._x):
      return None
    x = _with_one(np.concatenate(self._x))
    _, windows = np.unique(np.concatenate(self._windows), return_inverse=True)
    count = self._moments[-1, -1]
    mean = self._moments[-1, :-1] / count
    spread = np.sqrt(
      np.maximum(np.diag(self._moments)[:-1] / count - mean**2, 1e-30)
    )
    # On standardised inputs: the few huge dimensions of a residual stream
    # would else decide the penalty of all others.
    change = np.diag(np.append(1 / spread, 1.0))
    change[-1, :-1] = -mean / spread
    system = change.T @ self._moments @ change
    system[np.diag_indices(len(mean))] += _RIDGE * count
    found = {}
    for name, errors in self._errors.items():
      solved = np.linalg.solve(system, change.T @ self._cross[name])
      truth = _with_norm(np.concatenate(errors))
      rest = np.square(truth - x @ (change @ solved))
      total = np.square(truth - truth.mean(axis=0))
      found[name] = {
        "norm": _explained(rest[:, -1], total[:, -1], windows),
        "vector": _explained(
          rest[:, :-1].sum(axis=1), total[:, :-1].sum(axis=1), windows
        ),
      }
    return found


def _with_one(x: np.ndarray) -> np.ndarray:
  x = np.asarray(x, np.float64)
  return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _with_norm(error: np.ndarray) -> np.ndarray:
  error = np.asarray(error, np.float64)
  norm = np.linalg.norm(error, axis=1, keepdims=True)
  return np.concatenate([error, norm], axis=1)


def _explained(rest, total, windows) -> Estimate | None:
  if not total.sum():
    return None
  found = ratio(np.bincount(windows, rest), np.bincount(windows, total))
  return Estimate(1 - found.mean, found.stderr, found.n)
