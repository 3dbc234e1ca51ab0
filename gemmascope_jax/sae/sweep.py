"""Several SAEs on one stream of batches, in one program.

Members are stepped one by one on the same device array; those that differ only
in `config.KNOBS` and seed share one compiled step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from gemmascope_jax import parallel
from gemmascope_jax.sae import kernels, train_step
from gemmascope_jax.sae.config import KNOBS, Recipe

# What one stream of batches fixes for all who read it.
_SHARED = ("batch_size", "steps", "normalise")


def check(recipes: Sequence[Recipe], batch_size: int) -> None:
  """Refuses recipes that can't be trained together.

  Raises:
    ValueError: no recipe, one that differs in batch size, steps or
      normalisation, a batch size that is not the stream's, or two members
      that are the same.
  """
  if not recipes:
    raise ValueError("the sweep is empty: give at least one recipe")
  for field in _SHARED:
    values = {getattr(recipe, field) for recipe in recipes}
    if len(values) > 1:
      raise ValueError(
        f"members of one sweep share {field}, got {sorted(values)}: train"
        " them in separate runs"
      )
  if recipes[0].batch_size != batch_size:
    raise ValueError(
      f"the recipes' batch_size is {recipes[0].batch_size}, the stream's"
      f" {batch_size}: make them the same"
    )
  for index, recipe in enumerate(recipes):
    if recipe in recipes[:index]:
      raise ValueError(f"the sweep holds {recipe.name} twice: remove one")


def step_fn(recipe: Recipe, mesh: Mesh | None = None) -> Callable:
  """The compiled step of `recipe`, shared by members of its shape.

  Args:
    recipe: see `Recipe`.
    mesh: keeps the state split over it by `parallel.SAE_RULES`.

  Returns:
    (state, x [B, D], y [B, E], `train_step.Knobs`) -> (state, metrics); the
    state's buffers are donated.
  """
  return _compiled_step(_shape(recipe, mesh), mesh)


def init_fn(recipe: Recipe) -> Callable:
  """The compiled `train_step.init_state`, shared like the step.

  Returns:
    (key, `dictionary.Sample`) -> state.
  """
  return _compiled_init(_shape(recipe, None))


def _shape(recipe: Recipe, mesh: Mesh | None) -> Recipe:
  """The recipe without what compiled code does not depend on."""
  default = Recipe()
  shared = {name: getattr(default, name) for name in (*KNOBS, "seed")}
  step = recipe.step
  if step == "auto":
    step = "sparse" if mesh is None and kernels.available() else "dense"
  return dataclasses.replace(
    recipe, **shared, step=step, capacity=train_step.capacity(recipe)
  )


@functools.cache
def _compiled_step(recipe: Recipe, mesh: Mesh | None) -> Callable:
  def step(state, x, y, knobs):
    state, values = train_step.train_step(recipe, state, x, y, knobs)
    if mesh is not None:
      state = parallel.constrain(state, mesh, parallel.SAE_RULES)
    return state, values

  return jax.jit(step, donate_argnums=0)


@functools.cache
def _compiled_init(recipe: Recipe) -> Callable:
  return jax.jit(functools.partial(train_step.init_state, recipe))
