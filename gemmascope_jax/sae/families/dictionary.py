"""What every family shares: starting weights, and the reconstruction.

Parameters, all float32, latents first, so that a mesh splits every one of them
along its first axis:

  w_enc [M, D], b_enc [M], w_dec [M, E] with rows of unit length, b_dec [E],
  w_skip [D, E] if there is a skip connection

For an SAE the input x and the target y are the same and D = E.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemmascope_jax.sae.config import Recipe

Params = dict[str, jax.Array]


class Sample(NamedTuple):
  """Activations in training units, from which starting values are measured.

  Attributes:
    x: float32 [S, D], inputs.
    y: float32 [S, E], targets.
    x_mean: float32 [D], the input site's mean.
    y_mean: float32 [E], the target site's mean.
  """

  x: jax.Array
  y: jax.Array
  x_mean: jax.Array
  y_mean: jax.Array


class Batch(NamedTuple):
  """What a loss is computed on.

  Attributes:
    x: float32 [B, D], inputs in training units.
    y: float32 [B, E], targets.
    sparsity_coefficient: lambda at this step, after warm-up; scalar.
    target_l0: L0* of a quadratic penalty; scalar.
    dead: bool [M], latents that have not fired for long.
  """

  x: jax.Array
  y: jax.Array
  sparsity_coefficient: jax.Array
  target_l0: jax.Array
  dead: jax.Array


def init(recipe: Recipe, key: jax.Array, sample: Sample) -> Params:
  """Starting weights (Gemma Scope 3.2, and appendix B for transcoders).

  W_dec is He-uniform with unit rows, W_enc its transpose, biases 0, unless the
  recipe says otherwise.
  """
  inputs, outputs = sample.x.shape[1], sample.y.shape[1]
  w_dec = unit_rows(_he_uniform(key, recipe.width, outputs))
  if recipe.encoder_init == "transpose":
    if inputs != outputs:
      raise ValueError(
        f"recipe.encoder_init is 'transpose', but inputs are {inputs} wide and"
        f" targets {outputs}: use 'he_uniform'"
      )
    w_enc = w_dec
  else:
    w_enc = unit_rows(
      _he_uniform(jax.random.fold_in(key, 1), recipe.width, inputs)
    )
  zeros = jnp.zeros_like(sample.y_mean)
  params = {
    "w_enc": w_enc,
    "b_enc": jnp.zeros(recipe.width, jnp.float32),
    "w_dec": w_dec,
    "b_dec": sample.y_mean if recipe.bias_init == "mean" else zeros,
  }
  if recipe.skip:
    params["w_skip"] = jnp.zeros((inputs, outputs), jnp.float32)
  return params


def _he_uniform(key: jax.Array, width: int, columns: int) -> jax.Array:
  limit = (6 / width) ** 0.5
  return jax.random.uniform(key, (width, columns), jnp.float32, -limit, limit)


def shift(recipe: Recipe, params: Params) -> jax.Array:
  """[D]: what is subtracted from x before the encoder."""
  if recipe.pre_encoder_bias:
    return params["b_dec"]
  return jnp.zeros(params["w_enc"].shape[1], params["w_enc"].dtype)


def pre_activations(params: Params, code) -> jax.Array:
  """[R, L]: (x - shift) W_enc^T + b_enc of the latents in a code."""
  return code.linear + code.take(params["b_enc"])


def reconstruct(recipe: Recipe, params: Params, code, values, x) -> jax.Array:
  """[B, E]: values W_dec + b_dec, and x W_skip with a skip connection."""
  out = code.decode(values, params["w_dec"]) + params["b_dec"][None, :]
  return out + skipped(recipe, params, x)


def skipped(recipe: Recipe, params: Params, x) -> jax.Array | float:
  """[B, E]: x W_skip, or 0 without a skip connection."""
  if not recipe.skip:
    return 0.0
  return jnp.dot(x, params["w_skip"], precision=recipe.matmul_precision)


class Errors(NamedTuple):
  """How well a batch is reconstructed; see `squared_errors`.

  Attributes:
    trained: what the loss holds, a scalar.
    whole: that of the whole dictionary, a scalar.
    residual: [B, E], y_hat - y of the whole dictionary.
  """

  trained: jax.Array
  whole: jax.Array
  residual: jax.Array


def squared_errors(
  recipe: Recipe, params: Params, code, values, batch: Batch
) -> Errors:
  """||y - y_hat||^2 summed over dimensions, averaged over the batch.

  With `prefixes` (Matryoshka) each nested dictionary, the first m latents,
  reconstructs alone, and the training loss is the mean over all of them and
  the whole one. Gemma Scope 2 uses such a loss but gives no weights; equal ones
  keep its scale that of a single dictionary's, so that lambda means the same.

  Args:
    recipe: see `Recipe`.
    params: see above.
    code: `code.Dense` or `code.Sparse`.
    values: float32 [R, L], the latents' activations.
    batch: see `Batch`.
  """
  rest = params["b_dec"][None, :] + skipped(recipe, params, batch.x)
  rest = rest - batch.y
  bounds = (0, *recipe.prefixes, recipe.width)
  total = 0.0
  for first, last in zip(bounds, bounds[1:], strict=False):
    part = values
    if recipe.prefixes:
      part = jnp.where(code.among(first, last), values, 0)
    rest = rest + code.decode(part, params["w_dec"])
    error = jnp.square(rest).sum(axis=1).mean()
    total = total + error
  return Errors(total / (len(bounds) - 1), error, rest)


def measures(code, values: jax.Array, errors: Errors) -> dict[str, jax.Array]:
  """The part of a loss's aux that all families have."""
  active = (values > 0).astype(values.dtype)
  return {
    "squared_error": errors.whole,
    "l0": code.mean(active),
    "fired": code.total(active),
  }


def released(params: Params, threshold: jax.Array) -> Params:
  """A finished JumpReLU SAE in training units: thresholds [M] and weights."""
  names = ("w_enc", "b_enc", "w_dec", "b_dec", "w_skip")
  kept = {name: params[name] for name in names if name in params}
  return kept | {"threshold": threshold}


def unit_rows(matrix: jax.Array) -> jax.Array:
  """Scales every row to unit L2 norm (a zero row stays zero)."""
  norm = jnp.linalg.norm(matrix, axis=1, keepdims=True)
  return matrix / jnp.maximum(norm, jnp.finfo(matrix.dtype).tiny)
