"""Made-up parameters, rows and batches for tests of the families."""

import jax.numpy as jnp
import numpy as np

from gemmascope_jax.sae.families.dictionary import Batch, Sample


def rows(seed=0, rows=64, width=6):
  """Float64 [rows, width]."""
  return np.random.default_rng(seed).normal(size=(rows, width))


def params(seed=0, width=6, latents=32):
  """A JumpReLU dictionary, float64, a good part of whose latents fire."""
  rng = np.random.default_rng(seed)
  w_dec = rng.normal(size=(latents, width))
  return {
    "w_enc": rng.normal(size=(width, latents)).T,
    "b_enc": rng.normal(size=latents) * 0.1,
    "w_dec": w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True),
    "b_dec": rng.normal(size=width),
    "threshold": rng.uniform(0.5, 1.5, latents),
  }


def sample(x, y=None):
  """A `Sample` of float32 rows; the targets are x itself unless given."""
  x = jnp.asarray(x, jnp.float32)
  y = x if y is None else jnp.asarray(y, jnp.float32)
  return Sample(x, y, x.mean(axis=0), y.mean(axis=0))


def batch(x, y=None, coefficient=0.0, target_l0=4.0, dead=None, latents=32):
  """A `Batch`; the targets are x itself unless given."""
  y = x if y is None else y
  dead = jnp.zeros(latents, bool) if dead is None else dead
  return Batch(x, y, coefficient, target_l0, dead)
