"""The TopK SAE (Gao et al., 2.3): each row keeps its k largest latents.

  f    = the k largest of ReLU((x - b_dec) W_enc + b_enc), the others 0
  loss = mean_B ||x - x_hat||^2 + AuxK      (see `auxk`)

A row with fewer than k positive pre-activations keeps those; latents that tie
for the k-th place all stay. No JumpReLU does the same: a finished SAE keeps k.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gemmascope_jax.sae import largest
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import auxk, dictionary
from gemmascope_jax.sae.families.dictionary import Batch, Params

init = dictionary.init


def bound(
  recipe: Recipe, params: Params, pre: jax.Array, batch: Batch
) -> jax.Array:
  """[B, 1]: just below each row's k-th largest, or less; AuxK: [B, M]."""
  del params
  lowest = auxk.below(largest.kth_or_less(pre, recipe.k))
  return auxk.bound(recipe, pre, lowest, batch)


def loss(recipe: Recipe, params: Params, code, batch: Batch):
  """The loss above, and `dictionary.measures`."""
  pre = dictionary.pre_activations(params, code)
  values = largest.keep(pre, recipe.k)
  errors = dictionary.squared_errors(recipe, params, code, values, batch)
  total = errors.trained + auxk.loss(
    recipe, params, code, pre, errors.residual, batch
  )
  return total, dictionary.measures(code, values, errors)


def release(recipe: Recipe, params: Params) -> Params:
  """Thresholds of zero; `SAEConfig.k` says the rest."""
  del recipe
  return dictionary.released(params, jnp.zeros_like(params["b_enc"]))
