"""Records of a site and of SAEs there whose effects are planted."""

import numpy as np

from gemmascope_jax.studies.records import SiteRecord, SpliceRecord

SHAPE, WIDTH = (30, 12), 4


def site(seed=0, shape=SHAPE):
  """Random activations; position 0 does not count."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(*shape, WIDTH)) + 2
  keep = np.ones(shape, bool)
  keep[:, 0] = False
  clean = rng.uniform(1, 5, (shape[0], shape[1] - 1))
  return SiteRecord.of(x, keep, ~keep, x[keep].mean(0), clean, keep[:, :-1])


def splice(record, error, delta, active, seed=0):
  """About this squared error, rise of the loss and L0 at every token.

  Each may be an array of a number a token, or of one a loss.
  """
  rng = np.random.default_rng(seed)
  shape = record.keep.shape
  squared = error * rng.uniform(0.5, 1.5, shape)
  rise = delta * rng.uniform(0.5, 1.5, record.loss_clean.shape)
  return SpliceRecord(
    squared,
    active * rng.uniform(0.9, 1.1, shape),
    record.norm,
    record.norm * 0.9,
    record.loss_clean + rise,
    rise,
    np.ones((1, 4, WIDTH)),
  )
