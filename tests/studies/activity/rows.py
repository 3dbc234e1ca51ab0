"""A store of made-up rows, and SAEs that fire where a test says."""

import numpy as np

from gemmascope_jax.sae.sae import SAE, Params, SAEConfig


class Rows:
  """Reads like a store: rows of windows of uneven length, in memory."""

  root, site = "made-up rows", "res.1"

  def __init__(self, x, lengths, seed=0, vocabulary=50):
    self.x = np.asarray(x, np.float32)
    self.rows = len(self.x)
    assert sum(lengths) == self.rows
    longest = max(lengths) + 1
    rng = np.random.default_rng(seed)
    self.tokens = rng.integers(3, vocabulary, (len(lengths), longest))
    self.tokens = self.tokens.astype(np.int32)
    windows = np.repeat(np.arange(len(lengths)), lengths)
    # Position 0 is BOS, which is no row.
    positions = np.concatenate([1 + np.arange(n) for n in lengths])
    self._index = np.stack([windows, positions], axis=1).astype(np.int32)

  def width(self, site):
    assert site == self.site
    return self.x.shape[1]

  def read(self, site, start, stop):
    assert site == self.site and 0 <= start <= stop <= self.rows
    return self.x[start:stop]

  def gather(self, site, rows):
    return self.x[rows]

  def index(self, start, stop):
    assert 0 <= start <= stop <= self.rows
    return self._index[start:stop]

  def statistics(self, site):
    x = self.x.astype(np.float64)
    return x.mean(axis=0), float(np.square(x).sum(axis=1).mean())


def lengths(total, longest, seed=0):
  """Uneven window lengths that add up."""
  rng = np.random.default_rng(seed)
  found = []
  while sum(found) < total:
    found.append(int(min(rng.integers(1, longest), total - sum(found))))
  return found


def sae(w_enc, w_dec=None, threshold=0.0, b_enc=0.0, b_dec=0.0, **config):
  """An SAE of these arrays; the decoder is the encoder unless given."""
  w_enc = np.asarray(w_enc, np.float32)
  w_dec = w_enc.T.copy() if w_dec is None else np.asarray(w_dec, np.float32)
  full = lambda v, n: np.broadcast_to(np.float32(v), (n,)).copy()
  return SAE(
    Params(
      w_enc=w_enc,
      b_enc=full(b_enc, w_enc.shape[1]),
      w_dec=w_dec,
      b_dec=full(b_dec, w_dec.shape[1]),
      threshold=full(threshold, w_enc.shape[1]),
    ),
    SAEConfig(site="res.1", **config),
  )


def identity(width, **options):
  """An SAE whose latents are the coordinates of a row, where positive."""
  return sae(np.eye(width), **options)
