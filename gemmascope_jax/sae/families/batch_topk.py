"""The BatchTopK SAE (Bussmann et al., 2412.06410): k latents a row on average.

  f    = the k B largest of ReLU((x - b_dec) W_enc + b_enc) in the whole batch
  loss = mean_B ||x - x_hat||^2 + AuxK      (see `auxk`)

What a row keeps depends on the rest of its batch, so a finished SAE is the
JumpReLU with one threshold for all latents: the running mean, over steps, of
the smallest value that was kept. Besides the dictionary's
parameters there is that: running_threshold, a scalar that has no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gemmascope_jax.sae import code as codes
from gemmascope_jax.sae import largest
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import auxk, dictionary
from gemmascope_jax.sae.families.dictionary import Batch, Params, Sample

# Share of the running mean that stays in a step. About the last 20 batches
# count: many rows for one quantile, and little lag behind the weights.
_DECAY = 0.95


def init(recipe: Recipe, key: jax.Array, sample: Sample) -> Params:
  """The dictionary's start; the threshold that keeps k latents a row of it."""
  params = dictionary.init(recipe, key, sample)
  x = sample.x[: recipe.batch_size]
  code = codes.Dense.of(
    x,
    dictionary.shift(recipe, params),
    params["w_enc"],
    recipe.matmul_precision,
  )
  pre = dictionary.pre_activations(params, code)
  return params | {"running_threshold": _smallest(recipe, pre, len(x))}


def _smallest(recipe: Recipe, pre: jax.Array, rows: int) -> jax.Array:
  """The smallest pre-activation that a batch keeps, or 0; a scalar."""
  return largest.kth(pre, recipe.k * rows, axis=None)[0, 0]


def bound(
  recipe: Recipe, params: Params, pre: jax.Array, batch: Batch
) -> jax.Array:
  """[1, 1]: just below the k B-th largest, or less; AuxK: [B, M]."""
  del params
  lowest = largest.kth_or_less(pre, recipe.k * pre.shape[0], axis=None)
  return auxk.bound(recipe, pre, auxk.below(lowest), batch)


def loss(recipe: Recipe, params: Params, code, batch: Batch):
  """The loss above, and `dictionary.measures`; moves the running threshold."""
  pre = dictionary.pre_activations(params, code)
  smallest = _smallest(recipe, pre, len(batch.x))
  values = jnp.where(pre >= smallest, jax.nn.relu(pre), 0)
  errors = dictionary.squared_errors(recipe, params, code, values, batch)
  total = errors.trained + auxk.loss(
    recipe, params, code, pre, errors.residual, batch
  )
  running = params["running_threshold"]
  running = jax.lax.stop_gradient(_DECAY * running + (1 - _DECAY) * smallest)
  return total, dictionary.measures(code, values, errors) | {
    "running_threshold": running,
    "assign": {"running_threshold": running},
  }


def release(recipe: Recipe, params: Params) -> Params:
  """The running threshold for every latent."""
  del recipe
  threshold = jnp.full_like(params["b_enc"], params["running_threshold"])
  return dictionary.released(params, threshold)
