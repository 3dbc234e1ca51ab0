"""The JumpReLU SAE as pure functions (Gemma Scope, sections 2.2 and 3.2).

  pre   = (x - b_dec) W_enc + b_enc        (with the pre-encoder bias)
  f     = pre * 1[pre > threshold]         (eq. 3)
  x_hat = f W_dec + b_dec                  (eq. 2)
  loss  = mean_B( ||x - x_hat||^2 + lambda ||f||_0 )   (eq. 4)

The squared error is summed over dimensions, not averaged, and compares with
the *unshifted* x. Here x is in training units: the activation divided by C.

Letters: B batch rows, D width of the site, M latents.
"""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemmascope_jax.sae import straight_through
from gemmascope_jax.sae.config import Recipe

_QUANTILE_BLOCK = 1024


@flax.struct.dataclass
class Params:
  """A JumpReLU SAE's arrays, all float32.

  Attributes:
    w_enc: [D, M].
    b_enc: [M].
    w_dec: [M, D], rows of unit length.
    b_dec: [D].
    threshold: [M], positive.
  """

  w_enc: jax.Array
  b_enc: jax.Array
  w_dec: jax.Array
  b_dec: jax.Array
  threshold: jax.Array


def init(recipe: Recipe, key: jax.Array, rows: jax.Array, mean: jax.Array):
  """Starts a JumpReLU SAE (Gemma Scope 3.2).

  W_dec is He-uniform with unit rows, W_enc its transpose, b_enc 0, b_dec 0,
  thresholds 0.001, unless the recipe says otherwise.

  Args:
    recipe: see `Recipe`.
    key: typed PRNG key.
    rows: float32 [B, D], a sample of activations in training units.
    mean: float32 [D], the site's mean in training units.

  Returns:
    `Params`.
  """
  width = rows.shape[1]
  limit = (6 / recipe.width) ** 0.5
  w_dec = jax.random.uniform(
    key, (recipe.width, width), jnp.float32, -limit, limit
  )
  w_dec = unit_rows(w_dec)
  b_dec = mean if recipe.bias_init == "mean" else jnp.zeros_like(mean)
  params = Params(
    w_enc=w_dec.T,
    b_enc=jnp.zeros(recipe.width, jnp.float32),
    w_dec=w_dec,
    b_dec=b_dec.astype(jnp.float32),
    threshold=jnp.full(recipe.width, recipe.threshold_init, jnp.float32),
  )
  if recipe.threshold_init_l0 is not None:
    threshold = _quantiles(recipe, params, rows)
    params = params.replace(
      threshold=jnp.maximum(threshold, recipe.threshold_init)
    )
  return params


def _quantiles(recipe: Recipe, params: Params, rows: jax.Array) -> jax.Array:
  """[M]: what each latent's pre-activation exceeds on L0 / M of the rows.

  A block of latents at a time: rows x M numbers would not fit at large widths.
  """
  quantile = 1 - recipe.threshold_init_l0 / recipe.width
  blocks = recipe.width // math.gcd(recipe.width, _QUANTILE_BLOCK)
  x = rows
  if recipe.pre_encoder_bias:
    x = rows - params.b_dec[None, :]

  def block(w_enc):
    pre = jnp.dot(x, w_enc, precision=recipe.matmul_precision)
    return jnp.quantile(pre, quantile, axis=0)

  parts = jnp.stack(jnp.split(params.w_enc, blocks, axis=1))
  return jax.lax.map(block, parts).reshape(-1)


def pre_activations(recipe: Recipe, params: Params, x: jax.Array):
  """Encoder output before the jump: float32 [B, M] for x float32 [B, D]."""
  if recipe.pre_encoder_bias:
    x = x - params.b_dec[None, :]
  pre = jnp.dot(x, params.w_enc, precision=recipe.matmul_precision)
  return pre + params.b_enc[None, :]


def encode(recipe: Recipe, params: Params, x: jax.Array):
  """Latents' activations: float32 [B, M] for x float32 [B, D]."""
  pre = pre_activations(recipe, params, x)
  return straight_through.jumprelu(pre, params.threshold, recipe.bandwidth)


def decode(recipe: Recipe, params: Params, latents: jax.Array):
  """Reconstruction: float32 [B, D] for latents float32 [B, M]."""
  product = jnp.dot(latents, params.w_dec, precision=recipe.matmul_precision)
  return product + params.b_dec[None, :]


def loss(
  recipe: Recipe, params: Params, x: jax.Array, sparsity_coefficient: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
  """Eq. 4, averaged over the batch, and what a log line needs.

  Args:
    recipe: see `Recipe`.
    params: see `Params`.
    x: float32 [B, D], training units.
    sparsity_coefficient: lambda at this step, after warm-up.

  Returns:
    The scalar loss and {"squared_error", "l0", "kernel_share": scalars,
    "fired": bool [M]}.
  """
  pre = pre_activations(recipe, params, x)
  threshold, bandwidth = params.threshold, recipe.bandwidth
  latents = straight_through.jumprelu(pre, threshold, bandwidth)
  active = straight_through.step(pre, threshold, bandwidth)
  error = decode(recipe, params, latents) - x
  squared_error = jnp.square(error).sum(axis=1).mean()
  l0 = active.sum(axis=1).mean()
  near = straight_through.kernel_window(pre, threshold, bandwidth)
  aux = {
    "squared_error": squared_error,
    "l0": l0,
    "kernel_share": near.mean(),
    "fired": (pre > threshold[None, :]).any(axis=0),
  }
  return squared_error + sparsity_coefficient * l0, aux


def unit_rows(w_dec: jax.Array) -> jax.Array:
  """Scales every row of [M, D] to unit L2 norm (a zero row stays zero)."""
  norm = jnp.linalg.norm(w_dec, axis=1, keepdims=True)
  return w_dec / jnp.maximum(norm, jnp.finfo(w_dec.dtype).tiny)
