"""The JumpReLU SAE (Gemma Scope, sections 2.2 and 3.2).

  pre   = (x - b_dec) W_enc + b_enc        (with the pre-encoder bias)
  f     = pre * 1[pre > threshold]         (eq. 3)
  x_hat = f W_dec + b_dec                  (eq. 2)
  loss  = mean_B( ||x - x_hat||^2 + lambda ||f||_0 )   (eq. 4)

The squared error is summed over dimensions, not averaged, and compares with
the *unshifted* x. Here x is in training units: the activation divided by C.
Besides the dictionary's parameters there is threshold [M], or its logarithm.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gemmascope_jax.sae import code as codes
from gemmascope_jax.sae import straight_through
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary, sparsity
from gemmascope_jax.sae.families.dictionary import Batch, Params, Sample

_QUANTILE_BLOCK = 1024


def init(recipe: Recipe, key: jax.Array, sample: Sample) -> Params:
  """The dictionary's start; thresholds 0.001, unless the recipe says otherwise."""
  params = dictionary.init(recipe, key, sample)
  threshold = jnp.full(recipe.width, recipe.threshold_init, jnp.float32)
  if recipe.threshold_init_l0 is not None:
    threshold = jnp.maximum(
      _quantiles(recipe, params, sample.x), recipe.threshold_init
    )
  if recipe.threshold_parameter == "log":
    return params | {"log_threshold": jnp.log(threshold)}
  return params | {"threshold": threshold}


def _quantiles(recipe: Recipe, params: Params, rows: jax.Array) -> jax.Array:
  """[M]: what each latent's pre-activation exceeds on L0 / M of the rows.

  A block of latents at a time: rows x M numbers would not fit at large widths.
  """
  quantile = 1 - recipe.threshold_init_l0 / recipe.width
  size = math.gcd(recipe.width, _QUANTILE_BLOCK)
  shift = dictionary.shift(recipe, params)
  # A block is every n-th latent: on a mesh, as many from each device.
  blocks = params["w_enc"].reshape(size, -1, rows.shape[1])

  def of_block(i):
    w_enc = jax.lax.dynamic_index_in_dim(blocks, i, axis=1, keepdims=False)
    pre = codes.product(rows, shift, w_enc, recipe.matmul_precision)
    return jnp.quantile(pre, quantile, axis=0)

  found = jax.lax.map(of_block, jnp.arange(blocks.shape[1]))
  return found.T.reshape(-1)


def thresholds(params: Params) -> jax.Array:
  """[M]: theta, however it is parameterised."""
  if "log_threshold" in params:
    return jnp.exp(params["log_threshold"])
  return params["threshold"]


def bound(
  recipe: Recipe, params: Params, pre: jax.Array, batch: Batch
) -> jax.Array:
  """[1, M]: the lower end of the kernel's window."""
  del pre, batch
  theta = thresholds(params)
  # Rounding must not lose a latent at the window's edge: the loss looks again.
  slack = 1e-6 * (theta + recipe.bandwidth)
  return (theta - recipe.bandwidth / 2 - slack)[None, :]


def loss(recipe: Recipe, params: Params, code, batch: Batch):
  """Eq. 4 averaged over the batch, and what a log line needs.

  Args:
    recipe: see `Recipe`.
    params: the dictionary's and the thresholds.
    code: `code.Dense` or `code.Sparse` of batch.x.
    batch: see `dictionary.Batch`.

  Returns:
    The scalar loss and aux: squared_error, l0, kernel_share (of all
    pre-activations, inside the kernel window); fired [M].
  """
  pre = dictionary.pre_activations(params, code)
  theta = code.take(thresholds(params))
  values = straight_through.jumprelu(pre, theta, recipe.bandwidth)
  active = straight_through.step(pre, theta, recipe.bandwidth)
  errors = dictionary.squared_errors(recipe, params, code, values, batch)
  near = straight_through.kernel_window(pre, theta, recipe.bandwidth)
  total = errors.trained + sparsity.penalty(recipe, code, active, batch)
  return total, dictionary.measures(code, values, errors) | {
    "kernel_share": code.mean(near.astype(pre.dtype)) / recipe.width
  }


def release(recipe: Recipe, params: Params) -> Params:
  """Itself, with theta spelled out."""
  del recipe
  return dictionary.released(params, thresholds(params))
