"""The ReLU SAE with an L1 penalty: the baseline that the others improve on.

  f    = ReLU((x - b_dec) W_enc + b_enc)
  loss = mean_B( ||x - x_hat||^2 + lambda sum_i f_i )

Rows of W_dec have unit length, or the penalty could be evaded by shrinking f
and growing W_dec.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary
from gemmascope_jax.sae.families.dictionary import Batch, Params

init = dictionary.init


def bound(
  recipe: Recipe, params: Params, pre: jax.Array, batch: Batch
) -> jax.Array:
  """[1, 1]: zero."""
  del recipe, params, batch
  return jnp.zeros((1, 1), pre.dtype)


def loss(recipe: Recipe, params: Params, code, batch: Batch):
  """The loss above, and `dictionary.measures`."""
  values = jax.nn.relu(dictionary.pre_activations(params, code))
  errors = dictionary.squared_errors(recipe, params, code, values, batch)
  l1 = code.mean(values)
  total = errors.trained + batch.sparsity_coefficient * l1
  return total, dictionary.measures(code, values, errors)


def release(recipe: Recipe, params: Params) -> Params:
  """Thresholds of zero."""
  del recipe
  return dictionary.released(params, jnp.zeros_like(params["b_enc"]))
