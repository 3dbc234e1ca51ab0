"""One training step of one SAE: a pure function, jitted once for a sweep.

Members of a sweep that differ only in `config.KNOBS` share the compiled step,
because those are arguments of it.

Letters: B batch rows, D width of the input, E of the target, M latents; V
lines of K slots hold a sparse code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gemmascope_jax.sae import code as codes
from gemmascope_jax.sae import families, kernels, optimizer
from gemmascope_jax.sae.config import KNOBS, Recipe
from gemmascope_jax.sae.families import dictionary
from gemmascope_jax.sae.families.dictionary import Batch, Sample


@flax.struct.dataclass
class TrainState:
  """Everything that a step reads and writes.

  Attributes:
    params: the family's arrays, in training units.
    opt_state: Adam's moments.
    step: int32 scalar, updates made so far.
    last_fired: int32 [M], the step at which each latent last fired; -1 before
      it ever has.
    fired: int32 [M], rows on which each latent has fired since the loop last
      set it to zero.
    dense_steps: int32 scalar, sparse steps that fell back to dense products
      since then.
  """

  params: dictionary.Params
  opt_state: optax.OptState
  step: jax.Array
  last_fired: jax.Array
  fired: jax.Array
  dense_steps: jax.Array


class Knobs(NamedTuple):
  """Numbers that members of one compiled step differ in: `config.KNOBS`."""

  sparsity_coefficient: jax.Array
  target_l0: jax.Array
  learning_rate: jax.Array

  @classmethod
  def of(cls, recipe: Recipe) -> Knobs:
    """A recipe's, as float32 scalars."""
    return cls(*(jnp.float32(getattr(recipe, name)) for name in KNOBS))


def init_state(recipe: Recipe, key: jax.Array, sample: Sample) -> TrainState:
  """The state before the first step; see `dictionary.Sample`.

  Raises:
    ValueError: `Recipe.frozen` names a parameter that the family has not.
  """
  params = families.of(recipe.family).init(recipe, key, sample)
  unknown = sorted(set(recipe.frozen) - set(params))
  if unknown:
    raise ValueError(
      f"recipe.frozen names {', '.join(unknown)}; the parameters of family"
      f" {recipe.family!r} are {', '.join(sorted(params))}"
    )
  return TrainState(
    params=params,
    opt_state=optimizer.adam(recipe).init(params),
    step=jnp.zeros([], jnp.int32),
    last_fired=jnp.full(recipe.width, -1, jnp.int32),
    fired=jnp.zeros(recipe.width, jnp.int32),
    dense_steps=jnp.zeros([], jnp.int32),
  )


def capacity(recipe: Recipe) -> int:
  """K: slots of a row in a sparse step; see `Recipe.capacity`."""
  if recipe.capacity:
    return min(recipe.capacity, recipe.width)
  expected = max(recipe.k, recipe.target_l0, recipe.threshold_init_l0 or 0)
  slots = 8 * expected + (2 * recipe.aux_k if recipe.aux_coefficient else 0)
  return min(recipe.width, 64 * -(-round(slots) // 64))


def train_step(
  recipe: Recipe,
  state: TrainState,
  x: jax.Array,
  y: jax.Array,
  knobs: Knobs,
) -> tuple[TrainState, dict[str, Any]]:
  """One update on one batch (Gemma Scope 3.2).

  Args:
    recipe: static; what `knobs` holds is not read from it. `step` must be
      "dense" or "sparse".
    state: see `TrainState`.
    x: float32 [B, D] in training units (divided by C).
    y: float32 [B, E], the targets: x itself for an SAE.
    knobs: see `Knobs`.

  Returns:
    The new state, and scalars: loss, squared_error, l0, and for JumpReLU
    kernel_share (share of pre-activations inside the kernel window: a threshold
    with none can't move); sparsity_coefficient and learning_rate at this step,
    threshold_mean, gradient_norm.
  """
  silent = state.step - jnp.maximum(state.last_fired, 0)
  batch = Batch(
    x=x,
    y=y,
    sparsity_coefficient=optimizer.sparsity(
      recipe, knobs.sparsity_coefficient, state.step
    ),
    target_l0=knobs.target_l0,
    dead=silent >= -(-recipe.dead_after_rows // recipe.batch_size),
  )
  value_and_grad = _sparse if recipe.step == "sparse" else _dense
  loss, aux, gradients = value_and_grad(recipe, state.params, batch)
  rate = optimizer.learning_rate(recipe, knobs.learning_rate, state.step)
  params, opt_state, gradient_norm = optimizer.apply(
    recipe, state.params, gradients, state.opt_state, rate
  )
  params = params | aux.pop("assign", {})
  fired = aux.pop("fired").astype(jnp.int32)
  fell_back = aux.pop("fell_back", jnp.int32(0))
  metrics = {
    "loss": loss,
    **aux,
    "sparsity_coefficient": batch.sparsity_coefficient,
    "learning_rate": rate,
    "gradient_norm": gradient_norm,
  }
  if "threshold" in params or "log_threshold" in params:
    released = families.of(recipe.family).release(recipe, params)
    metrics["threshold_mean"] = released["threshold"].mean()
  state = TrainState(
    params=params,
    opt_state=opt_state,
    step=state.step + 1,
    last_fired=jnp.where(fired > 0, state.step, state.last_fired),
    fired=state.fired + fired,
    dense_steps=state.dense_steps + fell_back,
  )
  return state, metrics


def _dense(recipe: Recipe, params, batch: Batch):
  """(loss, aux, gradients) with products over all latents."""

  def loss(params):
    code = codes.Dense.of(
      batch.x,
      dictionary.shift(recipe, params),
      params["w_enc"],
      recipe.matmul_precision,
    )
    return families.of(recipe.family).loss(recipe, params, code, batch)

  (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
  return value, aux, gradients


def _room(recipe: Recipe, rows: int) -> tuple[int, int]:
  """(V, K) of a sparse code, see `kernels.Slots`.

  A few rows have many times the usual number of latents (some tokens' vectors
  are ten times as long as others), so an eighth of the lines is for what does
  not fit into a row's own; but TopK and AuxK look for the largest of a row, whose
  latents must stand in one line.
  """
  whole = recipe.family == "topk" or recipe.aux_coefficient
  return rows + (0 if whole else 8 + rows // 8), capacity(recipe)


def _sparse(recipe: Recipe, params, batch: Batch):
  """The same to rounding, touching only latents that count.

  Where there are more of them than there is room for, the step is dense.
  """
  family = families.of(recipe.family)
  linear = codes.product(
    batch.x,
    dictionary.shift(recipe, params),
    params["w_enc"],
    recipe.matmul_precision,
  )
  lines, slots = _room(recipe, len(batch.x))
  pre = linear + params["b_enc"][None, :]
  bound = family.bound(recipe, params, pre, batch)
  chosen = kernels.choose(linear, params["b_enc"], bound, lines, slots)

  def sparse(params):
    def loss(params):
      code = codes.Sparse.of(
        batch.x, dictionary.shift(recipe, params), params["w_enc"], chosen
      )
      return family.loss(recipe, params, code, batch)

    (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, aux | {"fell_back": jnp.int32(0)}, gradients

  def dense(params):
    value, aux, gradients = _dense(recipe, params, batch)
    return value, aux | {"fell_back": jnp.int32(1)}, gradients

  return jax.lax.cond(chosen.needed > lines, dense, sparse, params)
