"""What can stand in for an activation: SAEs and the baselines.

Each is a pytree with `reconstruct(x) -> (x_hat, active)`: x float32 [..., D],
x_hat the same shape, active float32 [...] the number of active latents, NaN
for something that has no latents.

Letters: D width of the site, M latents, K components.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.sae.sae import SAE


class Replacement(flax.struct.PyTreeNode):
  """Base of all: see the module.

  Attributes:
    reads: the site whose activation `reconstruct` is given; None: the one that
      is replaced.
  """

  reads: str | None = flax.struct.field(
    pytree_node=False, default=None, kw_only=True
  )

  def reconstruct(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x_hat, active) for x [..., D]."""
    raise TypeError(f"{type(self).__name__} does not say how to reconstruct")


class FromSAE(Replacement):
  """An SAE's reconstruction; with `reads`, a transcoder's."""

  sae: SAE

  def reconstruct(self, x):
    """Decodes the encoded activation."""
    latents = self.sae.encode(x)
    active = (latents > 0).sum(axis=-1).astype(jnp.float32)
    return self.sae.decode(latents, x), active


class Constant(Replacement):
  """The same vector everywhere: mean ablation, or zero ablation.

  Attributes:
    value: float32 [D].
  """

  value: jax.Array

  def reconstruct(self, x):
    """The vector at every position."""
    shape = (1,) * (x.ndim - 1) + (-1,)
    x_hat = jnp.broadcast_to(jnp.reshape(self.value, shape), x.shape)
    return x_hat, jnp.full(x.shape[:-1], jnp.nan)


class Projection(Replacement):
  """PCA: the mean plus the projection on the first K components.

  Attributes:
    mean: float32 [D].
    components: float32 [D, K], orthonormal columns.
  """

  mean: jax.Array
  components: jax.Array

  def reconstruct(self, x):
    """mean + (x - mean) U U^T."""
    mean = jnp.reshape(self.mean, (1,) * (x.ndim - 1) + (-1,))
    basis = jnp.asarray(self.components)
    inside = jnp.matmul(x - mean, basis, precision="highest")
    x_hat = mean + jnp.matmul(inside, basis.T, precision="highest")
    return x_hat, jnp.full(x.shape[:-1], jnp.nan)


def principal_components(
  covariance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Eigenvectors [D, D] in columns and their variances [D], largest first."""
  variances, vectors = np.linalg.eigh(covariance)
  return vectors[:, ::-1], variances[::-1]


def covariance(rows_of, rows: int, mean: np.ndarray, block: int = 16_384):
  """Covariance of activations, block by block.

  Args:
    rows_of: (start, stop) -> float32 [stop - start, D].
    rows: how many to use.
    mean: float64 [D].
    block: rows a block.

  Returns:
    float64 [D, D], divided by the number of rows.
  """
  total = np.zeros((len(mean), len(mean)), np.float64)
  for start in range(0, rows, block):
    x = np.asarray(rows_of(start, min(start + block, rows)), np.float64) - mean
    total += x.T @ x
  return total / rows


def match_l0(sae: SAE, rows: np.ndarray, l0: float) -> SAE:
  """An SAE with one threshold for all latents, chosen for a given L0, and the
  decoder scaled by the best single factor.

  For the untrained baseline: random directions get the sparsity of the trained
  SAE and the most favourable overall scale, so that what is left to its
  disadvantage is training.

  Args:
    sae: the SAE before its first step.
    rows: float32 [B, D], activations to calibrate on.
    l0: mean active latents wanted.

  Returns:
    An SAE whose L0 on `rows` is `l0` to within ties.
  """
  pre = np.asarray(sae.pre_activations(jnp.asarray(rows)))
  wanted = round(l0 * len(rows))
  flat = pre.reshape(-1)
  threshold = np.partition(flat, -wanted - 1)[-wanted - 1]
  threshold = np.float32(max(threshold, np.finfo(np.float32).tiny))
  params = sae.params.replace(
    threshold=np.full(sae.width, threshold, np.float32)
  )
  sae = sae.replace(params=params)
  target = np.asarray(rows, np.float64) - np.asarray(params.b_dec, np.float64)
  latents = sae.encode(jnp.asarray(rows))
  sparse = np.asarray(sae.decode(latents), np.float64) - params.b_dec
  gain = (sparse * target).sum() / max(np.square(sparse).sum(), 1e-300)
  return sae.replace(
    params=params.replace(w_dec=np.float32(gain) * np.asarray(params.w_dec))
  )
