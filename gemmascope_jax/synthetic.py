"""Activations whose true latents are known: sparse sums of given directions.

  x = sum_i c_i d_i

Each of N directions of unit length fires on a row with the same probability,
independently of the others, so that L0 fire on average; the coefficient c_i is
then uniform in 0.5..1.5, else 0. Coefficients keep away from zero because no
encoder that is linear up to its threshold can tell a small one from the
interference of the other directions, whose size is about sqrt(L0 / D).

Letters: B batch rows, D width of the activations, N directions, M latents.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg

from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.sae.sae import SAE, Params

_SMALLEST, _LARGEST = 0.5, 1.5
_ROWS = 1 << 14
# A step that no training run reaches: rows to measure on.
_HELD_OUT = 1 << 62


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
  """What the rows are made of.

  Attributes:
    directions: float32 [N, D], of unit length.
    l0: how many fire on an average row.
    seed: of the rows.
  """

  directions: np.ndarray
  l0: float
  seed: int = 0

  def rows(self, count: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients [count, N], activations [count, D]), float32, of a step."""
    key = np.asarray([self.seed, step], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    shape = (count, len(self.directions))
    c = rng.uniform(_SMALLEST, _LARGEST, shape).astype(np.float32)
    c *= rng.random(shape, np.float32) < self.l0 / len(self.directions)
    return c, c @ self.directions


def two_bases(width: int, seed: int = 0) -> np.ndarray:
  """2 D directions in D dimensions, as nearly orthogonal as two bases can be.

  More than D directions are never orthogonal. These are a rotated orthonormal
  basis, and its Hadamard transform: cosines are 0 or +-1/sqrt(D).

  Args:
    width: D, a power of two.
    seed: of the rotation.

  Returns:
    float32 [2 D, D].
  """
  rng = np.random.default_rng(seed)
  basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
  other = scipy.linalg.hadamard(width) @ basis / np.sqrt(width)
  return np.concatenate([basis, other]).astype(np.float32)


def random_directions(count: int, width: int, seed: int = 0) -> np.ndarray:
  """Directions in superposition, drawn evenly: float32 [N, D]."""
  rows = np.random.default_rng(seed).normal(size=(count, width))
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Stream:
  """Batches without end, as training reads them (see `data.streams`)."""

  site, model = "synthetic", "synthetic"
  shuffle = Shuffle()  # of no effect: no row comes twice
  policy = TokenPolicy(excluded_ids=(), pad_id=0)
  waits_for = "arithmetic"

  def __init__(self, truth: Truth, batch_size: int):
    self.truth, self.batch_size = truth, batch_size
    self.width, self.rows = truth.directions.shape[1], 2**62
    directions = truth.directions.astype(np.float64)
    rate = truth.l0 / len(directions)
    middle = (_SMALLEST + _LARGEST) / 2
    square = (_LARGEST**3 - _SMALLEST**3) / (3 * (_LARGEST - _SMALLEST))
    self.mean = rate * middle * directions.sum(axis=0)
    # E c_i c_j: of one direction with itself, and of two that are independent.
    alone = rate * square - (rate * middle) ** 2
    self.mean_square_norm = float(
      alone * len(directions) + np.square(self.mean).sum()
    )
    self.provenance = {
      "directions": len(directions),
      "l0": truth.l0,
      "seed": truth.seed,
    }
    self.fingerprint = f"synthetic {self.provenance}"

  def batch(self, step: int, part: slice = slice(None)) -> np.ndarray:
    """float32 [B, D], a pure function of the seed and the step."""
    return self.truth.rows(self.batch_size, step)[1][part]

  def iterate(
    self, start: int = 0, stop: int | None = None, *, part: slice = slice(None)
  ) -> Iterator[tuple[int, np.ndarray]]:
    """(step, batch) from `start` up to `stop`."""
    for step in itertools.count(start):
      if step == stop:
        return
      yield step, self.batch(step, part)


class Recovery(NamedTuple):
  """How much of the truth an SAE found, on rows that it was not trained on.

  Attributes:
    cosine: mean over directions of the largest cosine with a decoder row.
    f1: mean over directions of the F1 score with which that row's latent fires
      where the direction does.
    l0: latents that fire on an average row.
    fvu: fraction of variance unexplained.
  """

  cosine: float
  f1: float
  l0: float
  fvu: float


def recovery(sae: SAE, truth: Truth) -> Recovery:
  """Compares an SAE with the truth; see `Recovery`."""
  c, x = truth.rows(_ROWS, _HELD_OUT)
  latents = np.asarray(sae.encode(x))
  error = np.asarray(sae.decode(latents)) - x
  decoder = np.asarray(sae.params.w_dec)
  decoder = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
  cosines = truth.directions @ decoder.T
  found, real = latents[:, cosines.argmax(axis=1)] > 0, c > 0
  both = (found & real).sum(axis=0)
  f1 = 2 * both / np.maximum(found.sum(axis=0) + real.sum(axis=0), 1)
  return Recovery(
    cosine=float(cosines.max(axis=1).mean()),
    f1=float(f1.mean()),
    l0=float((latents > 0).sum(axis=1).mean()),
    fvu=float(np.square(error).sum() / np.square(x - x.mean(axis=0)).sum()),
  )


def informed(truth: Truth) -> SAE:
  """The SAE of someone who knows the directions: what to compare with.

  Encoder rows are the linear detectors of least variance (Cov^-1 d, with e . d
  = 1), with one threshold, at which the true number of latents fires.
  """
  _, x = truth.rows(_ROWS, _HELD_OUT + 1)
  mean, covariance = x.mean(axis=0), np.cov(x, rowvar=False)
  encoder = np.linalg.solve(covariance, truth.directions.T)  # [D, N]
  encoder /= (encoder * truth.directions.T).sum(axis=0)
  pre = (x - mean) @ encoder + truth.l0 / len(truth.directions)
  share = 1 - truth.l0 / len(truth.directions)
  threshold = np.quantile(pre, share)
  return SAE(
    Params(
      w_enc=encoder.astype(np.float32),
      b_enc=(pre - x @ encoder).mean(axis=0).astype(np.float32),
      w_dec=truth.directions,
      b_dec=np.zeros_like(mean),
      threshold=np.full(len(truth.directions), threshold, np.float32),
    )
  )
