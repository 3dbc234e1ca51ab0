"""AuxK: a loss that gives latents which no longer fire a gradient (Gao et al.).

With e = y - y_hat the error of the SAE's own reconstruction, taken as data,

  z    = the aux_k largest positive pre-activations of a row's dead latents
  loss = aux_coefficient min(1, dead / aux_k) mean_B ||e - z W_dec||^2

(Gao et al., A.2; the factor for when fewer than aux_k are dead is SAELens's.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gemmascope_jax.sae import largest
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families.dictionary import Batch, Params


def bound(
  recipe: Recipe, pre: jax.Array, alive: jax.Array, batch: Batch
) -> jax.Array:
  """The family's own bound, lowered for dead latents as far as AuxK needs.

  Args:
    recipe: see `Recipe`.
    pre: float32 [B, M], pre-activations.
    alive: float32 [B, 1] or [1, 1], the bound without AuxK.
    batch: see `dictionary.Batch`.

  Returns:
    [B, M]; without AuxK, `alive`.
  """
  if not recipe.aux_coefficient:
    return alive
  dead = batch.dead[None, :]
  lowest = jax.lax.cond(
    batch.dead.any(),
    lambda: below(largest.kth_or_less(jnp.where(dead, pre, 0), recipe.aux_k)),
    lambda: jnp.zeros((pre.shape[0], 1), pre.dtype),
  )
  return jnp.where(dead, jnp.minimum(alive, lowest), alive)


def below(value: jax.Array) -> jax.Array:
  """The next smaller float, so that what equals `value` is above it; 0 at 0."""
  return jnp.nextafter(value, jnp.zeros_like(value))


def loss(
  recipe: Recipe, params: Params, code, pre, residual, batch: Batch
) -> jax.Array:
  """The loss above, a scalar; nothing is computed while no latent is dead.

  Args:
    recipe: see `Recipe`.
    params: the dictionary's.
    code: `code.Dense` or `code.Sparse`.
    pre: float32 [R, L], pre-activations of the code's latents.
    residual: float32 [B, E], y_hat - y.
    batch: see `dictionary.Batch`.
  """
  if not recipe.aux_coefficient:
    return jnp.zeros((), pre.dtype)
  error = -jax.lax.stop_gradient(residual)

  def explained(pre, w_dec):
    dead = jnp.where(code.take(batch.dead), pre, 0)
    found = code.decode(largest.keep(dead, recipe.aux_k), w_dec)
    share = jnp.minimum(batch.dead.sum() / recipe.aux_k, 1)
    return share * jnp.square(error - found).sum(axis=1).mean()

  return recipe.aux_coefficient * jax.lax.cond(
    batch.dead.any(),
    explained,
    lambda pre, w_dec: jnp.zeros((), pre.dtype),
    pre,
    params["w_dec"],
  )
