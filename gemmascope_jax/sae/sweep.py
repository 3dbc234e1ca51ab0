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
_SHARED = ("batch_size", "normalise", "centre_inputs")


def check(recipes: Sequence[Recipe], batch_size: int) -> None:
  """Refuses recipes that can't be trained together.

  Raises:
    ValueError: no recipe, one that differs in batch size or normalisation, a
      batch size that is not the stream's, or two members that are the same.
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
    mesh: keeps the state split over it by `parallel.SAE_RULES`, and batches by
      rows; what devices then tell each other is in `costs.collective_bytes`.

  Returns:
    (state, x [B, D], y [B, E], `train_step.Knobs`) -> (state, metrics); the
    state's buffers are donated.

  Raises:
    ValueError: the step "sparse" on a mesh.
  """
  return _compiled_step(_shape(recipe, mesh), mesh)


def init_fn(recipe: Recipe, mesh: Mesh | None = None) -> Callable:
  """The compiled `train_step.init_state`, shared like the step.

  Args:
    recipe: see `Recipe`.
    mesh: makes the state in the parts that its devices keep, so that no device
      ever holds more; the numbers are those of one device, to rounding.

  Returns:
    (key, `dictionary.Sample`) -> state.

  Raises:
    ValueError: the step "sparse" on a mesh.
  """
  return _compiled_init(_shape(recipe, mesh), mesh)


def step_kind(recipe: Recipe, mesh: Mesh | None = None) -> str:
  """ "dense" or "sparse": what the recipe's step is on these devices.

  Raises:
    ValueError: the step "sparse" on a mesh.
  """
  if recipe.step == "sparse" and mesh is not None:
    raise ValueError(
      f"recipe.step is 'sparse', but a mesh, here {dict(mesh.shape)}, has dense"
      " steps only: set recipe.step to 'auto', or mesh.data and mesh.model to 1"
    )
  if recipe.step == "auto":
    return "sparse" if mesh is None and kernels.available() else "dense"
  return recipe.step


def _shape(recipe: Recipe, mesh: Mesh | None) -> Recipe:
  """The recipe without what compiled code does not depend on."""
  default = Recipe()
  shared = {name: getattr(default, name) for name in (*KNOBS, "seed")}
  if not recipe.learning_rate_decay_share:
    shared["steps"] = default.steps
  return dataclasses.replace(
    recipe,
    **shared,
    step=step_kind(recipe, mesh),
    capacity=train_step.capacity(recipe),
  )


@functools.cache
def _compiled_step(recipe: Recipe, mesh: Mesh | None) -> Callable:
  def step(state, x, y, knobs):
    state, values = train_step.train_step(recipe, state, x, y, knobs)
    return _split(state, mesh), values

  return jax.jit(step, donate_argnums=0)


@functools.cache
def _compiled_init(recipe: Recipe, mesh: Mesh | None) -> Callable:
  def init(key, sample):
    return _split(train_step.init_state(recipe, key, sample), mesh)

  return jax.jit(init)


def _split(state: train_step.TrainState, mesh: Mesh | None):
  """The state, by latents over the mesh."""
  if mesh is None:
    return state
  return parallel.constrain(state, mesh, parallel.SAE_RULES)
