"""Adam as Gemma Scope uses it, and the unit-norm constraint on the decoder.

GS 3.2: beta1 = 0, beta2 = 0.999, eps = 1e-8; the gradient component parallel
to each latent's direction is removed before Adam, and the directions are
renormalised after every update; the learning rate warms up along a half cosine
from a tenth of its value.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gemmascope_jax.sae import kernels
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families.dictionary import Params, unit_rows


class SecondMomentState(NamedTuple):
  """State of `scale_by_second_moment`: a step count and one moment a leaf."""

  count: jax.Array
  nu: optax.Updates


def scale_by_second_moment(
  b2: float, eps: float
) -> optax.GradientTransformation:
  """`optax.scale_by_adam(b1=0)` without storing the unused first moment.

  With beta1 = 0 the first moment is the gradient itself, so keeping it costs a
  third of the optimizer's memory for nothing.

  Args:
    b2: decay of the second moment, bias-corrected as in Adam.
    eps: added to the root of the second moment.
  """

  def init(params):
    return SecondMomentState(
      jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params)
    )

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    nu = jax.tree.map(
      lambda g, v: (1 - b2) * jnp.square(g) + b2 * v, updates, state.nu
    )
    correction = 1 - b2 ** count.astype(jnp.float32)
    updates = jax.tree.map(
      lambda g, v: g / (jnp.sqrt(v / correction) + eps), updates, nu
    )
    return updates, SecondMomentState(count, nu)

  return optax.GradientTransformation(init, update)


def learning_rate(
  recipe: Recipe, peak: jax.Array, step: jax.Array
) -> jax.Array:
  """The schedule: half-cosine warm-up, constant, optional linear decay.

  Args:
    recipe: see `Recipe`; its own `learning_rate` is not read.
    peak: the rate after warm-up.
    step: int, the number of updates made before this one.

  Returns:
    float32 scalar.
  """
  step = jnp.asarray(step, jnp.float32)
  warmup = recipe.learning_rate_warmup_steps
  progress = jnp.clip(step / max(warmup, 1), 0, 1) if warmup else 1.0
  start = recipe.learning_rate_warmup_start
  rise = start + (1 - start) * 0.5 * (1 - jnp.cos(jnp.pi * progress))
  decay_steps = recipe.learning_rate_decay_share * recipe.steps
  fall = 1.0
  if decay_steps:
    fall = jnp.clip((recipe.steps - step) / decay_steps, 0, 1)
  return peak * rise * fall


def sparsity(recipe: Recipe, coefficient: jax.Array, step: jax.Array):
  """lambda at `step`: linear from 0 over the warm-up (GS 3.2)."""
  warmup = recipe.sparsity_warmup_steps
  if not warmup:
    return coefficient
  step = jnp.asarray(step, jnp.float32)
  return coefficient * jnp.minimum(1, step / warmup)


def adam(recipe: Recipe) -> optax.GradientTransformation:
  """Adam's direction for one SAE, without the learning rate."""
  if recipe.adam_b1 == 0:
    return scale_by_second_moment(recipe.adam_b2, recipe.adam_eps)
  return optax.scale_by_adam(
    b1=recipe.adam_b1, b2=recipe.adam_b2, eps=recipe.adam_eps
  )


def remove_parallel(gradient: jax.Array, w_dec: jax.Array) -> jax.Array:
  """Removes from each row of [M, D] its component along the unit row of w_dec.

  g <- g - (g . d) d, before Adam sees it (GS 3.2).
  """
  along = (gradient * w_dec).sum(axis=1, keepdims=True)
  return gradient - along * w_dec


class Update(NamedTuple):
  """What `apply` returns: parameters, state, the gradient's L2 norm."""

  params: Params
  state: optax.OptState
  gradient_norm: jax.Array


def apply(
  recipe: Recipe,
  params: Params,
  gradients: Params,
  state: optax.OptState,
  rate: jax.Array,
) -> Update:
  """One constrained update (steps 7-10 of the recipe).

  Projects the decoder gradient, takes the Adam step, renormalises the decoder
  and keeps the thresholds positive. Vectors (biases, thresholds) get
  `bias_learning_rate_scale` of the rate; `frozen` parameters stay as they are.

  Args:
    recipe: see `Recipe`; with the step "sparse", whose kernels there are then,
      matrices are updated in one pass over the memory.
    params: see `families.dictionary`.
    gradients: of the same structure.
    state: of `adam(recipe)`.
    rate: this step's learning rate, a scalar.

  Returns:
    See `Update`; the norm is of the gradients as given.
  """
  norms, fused = [], {}
  count = state.count + 1
  if recipe.step == "sparse":
    for name, value in params.items():
      if value.ndim == 2 and name not in recipe.frozen:
        *fused[name], squares = kernels.adam_rows(
          value,
          gradients[name],
          state.nu[name],
          state.mu[name] if recipe.adam_b1 else None,
          _numbers(recipe, rate, count, name == "w_dec"),
        )
        norms.append(squares.sum())
  rest = {k: v for k, v in params.items() if k not in fused}
  given = {k: gradients[k] for k in rest}
  norms.append(jnp.square(optax.global_norm(given)))
  if "w_dec" in rest:
    given["w_dec"] = remove_parallel(given["w_dec"], params["w_dec"])
  direction, moments = adam(recipe).update(given, _of(state, rest), rest)
  small = rate * recipe.bias_learning_rate_scale
  new = {}
  for name, value in rest.items():
    if name not in recipe.frozen:
      value = value - (small if value.ndim == 1 else rate) * direction[name]
      if name == "w_dec":
        value = unit_rows(value)
      elif name == "threshold":
        value = jnp.maximum(value, jnp.finfo(value.dtype).tiny)
    new[name] = value
  if fused:
    new |= {name: found[0] for name, found in fused.items()}
    nu = {name: found[1] for name, found in fused.items()}
    moments = moments._replace(nu=moments.nu | nu)
    if recipe.adam_b1:
      mu = {name: found[2] for name, found in fused.items()}
      moments = moments._replace(mu=moments.mu | mu)
  return Update(new, moments, jnp.sqrt(sum(norms)))


def _of(state: optax.OptState, names) -> optax.OptState:
  """The moments of some parameters."""
  kept = {
    field: {name: getattr(state, field)[name] for name in names}
    for field in ("mu", "nu")
    if hasattr(state, field)
  }
  return state._replace(**kept)


def _numbers(recipe: Recipe, rate, count, unit: bool) -> jax.Array:
  """What `kernels.adam_rows` needs to know."""
  decays = jnp.asarray([recipe.adam_b1, recipe.adam_b2], jnp.float32)
  corrections = 1 - decays ** count.astype(jnp.float32)
  constants = jnp.asarray([recipe.adam_eps], jnp.float32)
  flag = jnp.asarray([unit], jnp.float32)
  rate = jnp.asarray(rate, jnp.float32).reshape(1)
  return jnp.concatenate([rate, decays, constants, corrections, flag])
