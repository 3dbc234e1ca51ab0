"""How a member of a run starts, and how it ends as a finished SAE."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import artifacts, parallel
from gemmascope_jax.parallel import processes
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae import families, fold, load, sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families.dictionary import Sample
from gemmascope_jax.sae.sae import Params, SAEConfig
from gemmascope_jax.sae.train_step import TrainState
from gemmascope_jax.training import monitors
from gemmascope_jax.training.units import Units

# Rows from which data-dependent starting values are measured.
_SAMPLE_ROWS = 8_192
# So many are on the host when an SAE is saved.
_LATENTS_AT_A_TIME = 4_096


def sample(stream, units: Units) -> Sample:
  """Rows from the start of the stream, in training units."""
  rows = min(_SAMPLE_ROWS, stream.rows)
  batches = math.ceil(rows / stream.batch_size)
  found = np.concatenate([x for _, x in stream.iterate(0, batches)])
  x, y = units.inputs_and_targets(jnp.asarray(found[:rows]))
  means = (units.x_mean, units.y_mean)
  return Sample(x, y, *(jnp.asarray(mean, jnp.float32) for mean in means))


def sample_shapes(units: Units) -> Sample:
  """`sample` without its numbers."""
  shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
  x, y = len(units.x_mean), len(units.y_mean)
  return Sample(
    shape(_SAMPLE_ROWS, x), shape(_SAMPLE_ROWS, y), shape(x), shape(y)
  )


def initial_state(
  recipe: Recipe,
  sample: Sample,
  seed: int,
  mesh: Mesh | None = None,
  units: Units | None = None,
) -> TrainState:
  """A member before its first step, on the devices that train it.

  Args:
    recipe: with `start`, its parameters are those of that SAE.
    sample: see `sample`.
    seed: added to the recipe's.
    mesh: the devices; None: the default one.
    units: needed with `start`.

  Raises:
    ValueError: an SAE to start from that is of another width or site.
    FileNotFoundError: there is none.
  """
  init = sweep.init_fn(recipe, mesh)
  state = init(jax.random.key(seed + recipe.seed), sample)
  if recipe.start:
    params = {
      name: jax.device_put(value, state.params[name].sharding)
      for name, value in _continued(recipe, units).items()
    }
    state = state.replace(params=state.params | params)
  # Each member owns its buffers, because its step is given them to overwrite.
  return jax.tree.map(jnp.copy, state)


def _continued(recipe: Recipe, units: Units) -> dict[str, np.ndarray]:
  """Parameters of the SAE that a recipe starts from, in training units."""
  found = load(recipe.start)
  site = found.config.site, found.config.target_site
  own = units.site, units.target_site
  if found.config.site is not None and site != own:
    raise ValueError(
      f"recipe.start is {recipe.start}, of {site[0]}"
      f"{f' to {site[1]}' if site[1] else ''}: expected an SAE of {own[0]}"
      f"{f' to {own[1]}' if own[1] else ''}"
    )
  shape = (recipe.width, len(units.x_mean), len(units.y_mean), recipe.skip)
  theirs = (
    found.width,
    found.site_width,
    found.target_width,
    found.params.w_skip is not None,
  )
  if units.parts or found.config.k is not None or shape != theirs:
    raise ValueError(
      f"recipe.start is {recipe.start}, with (latents, inputs, outputs, skip)"
      f" {theirs}: expected a JumpReLU SAE with {shape}"
    )
  params = fold.unfold(
    found.params,
    units.scale,
    recipe.pre_encoder_bias,
    units.target_scale,
    units.centre,
  )
  threshold = np.maximum(params["threshold"], np.finfo(np.float32).tiny)
  if recipe.threshold_parameter == "log":
    del params["threshold"]
    return params | {"log_threshold": np.log(threshold)}
  return params | {"threshold": threshold}


def save(
  stream, units: Units, name: str, recipe: Recipe, state: TrainState, folder
) -> None:
  """Folds one member and writes it with its provenance."""
  provenance = {
    "recipe": dataclasses.asdict(recipe),
    "name": name,
    "steps": int(state.step),
    "rows": int(state.step) * recipe.batch_size,
    "dead_fraction": monitors.dead_fraction(recipe, state),
    "dead_after_rows": monitors.dead_window(recipe, state),
    "normalisation": units.scales,
    "stream": stream.fingerprint,
    **stream.provenance,
  }
  config = SAEConfig(
    family=recipe.family,
    k=recipe.k if recipe.family == "topk" else None,
    site=units.site,
    target_site=units.target_site,
    parts=units.parts,
    model=stream.model,
    token_policy=stream.policy,
    provenance=artifacts.canonical_json(provenance),
  )
  parts = _folded(units, recipe, state)
  if processes.is_first():
    gemma_scope.save_parts(parts, recipe.width, config, folder)
  else:
    collections.deque(parts, maxlen=0)  # gives the first what it lacks


def _folded(
  units: Units, recipe: Recipe, state: TrainState
) -> Iterator[Params]:
  """The SAE on raw activations, a block of latents at a time."""
  released = jax.jit(families.of(recipe.family).release, static_argnums=0)(
    recipe, state.params
  )
  whole = {k: v for k, v in released.items() if k in ("b_dec", "w_skip")}
  by_latents = {k: v for k, v in released.items() if k not in whole}
  whole = jax.tree.map(np.asarray, whole)
  for block in parallel.blocks(by_latents, _LATENTS_AT_A_TIME):
    yield fold.fold(
      block | whole,
      units.scale,
      recipe.pre_encoder_bias,
      units.target_scale,
      units.centre,
    )
