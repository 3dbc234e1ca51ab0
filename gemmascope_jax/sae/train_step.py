"""One training step of one SAE: a pure function, jitted once for a sweep.

Members of a sweep that differ only in their sparsity coefficient share the
compiled step, because the coefficient is an argument of it.

Letters: B batch rows, D width of the site, M latents.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gemmascope_jax.sae import jumprelu, optimizer
from gemmascope_jax.sae.config import Recipe


@flax.struct.dataclass
class TrainState:
  """Everything that a step reads and writes.

  Attributes:
    params: the SAE's arrays, in training units.
    opt_state: Adam's moments.
    step: int32 scalar, updates made so far.
    last_fired: int32 [M], the step at which each latent last fired; -1 before
      it ever has.
  """

  params: jumprelu.Params
  opt_state: optax.OptState
  step: jax.Array
  last_fired: jax.Array


def init_state(
  recipe: Recipe, key: jax.Array, rows: jax.Array, mean: jax.Array
) -> TrainState:
  """The state before the first step; arguments as `jumprelu.init`."""
  params = jumprelu.init(recipe, key, rows, mean)
  return TrainState(
    params=params,
    opt_state=optimizer.adam(recipe).init(params),
    step=jnp.zeros([], jnp.int32),
    last_fired=jnp.full(recipe.width, -1, jnp.int32),
  )


def train_step(
  recipe: Recipe,
  state: TrainState,
  x: jax.Array,
  sparsity_coefficient: jax.Array,
) -> tuple[TrainState, dict[str, Any]]:
  """One update on one batch (Gemma Scope 3.2).

  Args:
    recipe: static; its own `sparsity_coefficient` is not read.
    state: see `TrainState`.
    x: float32 [B, D] in training units (divided by C).
    sparsity_coefficient: lambda before warm-up, a traced scalar.

  Returns:
    The new state, and scalars: loss, squared_error, l0, kernel_share (share of
    pre-activations inside the kernel window: a threshold with none can't
    move), sparsity_coefficient and learning_rate at this step, threshold_mean,
    gradient_norm.
  """
  coefficient = optimizer.sparsity(recipe, sparsity_coefficient, state.step)
  grad = jax.value_and_grad(jumprelu.loss, argnums=1, has_aux=True)
  (loss, aux), gradients = grad(recipe, state.params, x, coefficient)
  params, opt_state = optimizer.apply(
    recipe, state.params, gradients, state.opt_state, state.step
  )
  fired = aux.pop("fired")
  metrics = {
    "loss": loss,
    **aux,
    "sparsity_coefficient": coefficient,
    "learning_rate": optimizer.learning_rate(recipe, state.step),
    "threshold_mean": params.threshold.mean(),
    "gradient_norm": optax.global_norm(gradients),
  }
  state = TrainState(
    params=params,
    opt_state=opt_state,
    step=state.step + 1,
    last_fired=jnp.where(fired, state.step, state.last_fired),
  )
  return state, metrics
