"""A stream of made-up activations with a few true directions, for tests."""

import itertools
import time

import numpy as np

from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.streams.order import Shuffle


class RowsStream:
  """Sparse combinations of 12 directions in `width` dimensions, off centre."""

  rows, model = 4096, "made up"
  shuffle = Shuffle()
  policy = TokenPolicy(excluded_ids=(0, 1, 2), pad_id=0)
  provenance = {"weights_hash": "none"}

  def __init__(
    self,
    batch_size,
    pause=0.0,
    poisoned=None,
    *,
    site="res.0",
    width=8,
    factor=1.0,
  ):
    self.batch_size, self._pause, self._poisoned = batch_size, pause, poisoned
    self.site, self.width = site, width
    self.fingerprint = f"rows {site}"
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(12, 8))
    codes = rng.exponential(size=(self.rows, 12))  # the same at every site
    codes *= rng.random(codes.shape) < 0.15
    if site != "res.0":
      directions = np.random.default_rng(width).normal(size=(12, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    self.x = ((codes @ directions * 50 + 20) * factor).astype(np.float32)
    self.mean = self.x.mean(axis=0, dtype=np.float64)
    self.mean_square_norm = float(
      np.square(self.x, dtype=np.float64).sum(axis=1).mean()
    )

  waits_for = "memory"

  def batch(self, step, part=slice(None)):
    chosen = np.arange(step, step + self.batch_size) * self.batch_size
    batch = self.x[chosen % self.rows]
    if step == self._poisoned:
      batch[3, 2] = np.nan
    return batch[part]

  def iterate(self, start=0, stop=None, *, part=slice(None)):
    for step in itertools.count(start):
      if step == stop:
        return
      time.sleep(self._pause)
      yield step, self.batch(step, part)
