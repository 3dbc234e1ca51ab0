"""How a member of a run starts, and how it ends as a finished SAE.

Letters: B batch rows, D width of the site, M latents.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae import families, fold, sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families.dictionary import Sample
from gemmascope_jax.sae.sae import SAE, SAEConfig
from gemmascope_jax.training import monitors

# Rows from which data-dependent starting values are measured.
_SAMPLE_ROWS = 8_192


def scale(stream, recipe: Recipe) -> float:
  """C, the root of the site's mean square norm (Gemma Scope 3.1)."""
  return (
    math.sqrt(stream.mean_square_norm) if recipe.normalise == "rms" else 1.0
  )


def initial_states(stream, recipes, scale, seed) -> list:
  """Every member before its first step, from a sample of the stream."""
  rows = min(_SAMPLE_ROWS, stream.rows)
  batches = math.ceil(rows / stream.batch_size)
  sample = np.concatenate([x for _, x in stream.iterate(0, batches)])
  sample = jnp.asarray(sample[:rows]) / jnp.float32(scale)
  mean = jnp.asarray(stream.mean / scale, jnp.float32)
  sample = Sample(sample, sample, mean, mean)
  states = [
    sweep.init_fn(recipe)(jax.random.key(seed + recipe.seed), sample)
    for recipe in recipes
  ]
  # Each member owns its buffers, because its step is given them to overwrite.
  return [jax.tree.map(jnp.copy, state) for state in states]


def save(stream, scale, recipe, state, folder) -> None:
  """Folds one member and writes it with its provenance."""
  provenance = {
    "recipe": dataclasses.asdict(recipe),
    "name": recipe.name,
    "steps": int(state.step),
    "rows": int(state.step) * recipe.batch_size,
    "dead_fraction": monitors.dead_fraction(recipe, state),
    "dead_after_rows": monitors.DEAD_AFTER_ROWS,
    "normalisation": {"scale": scale},
    "stream": stream.fingerprint,
    **stream.provenance,
  }
  released = families.of(recipe.family).release(recipe, state.params)
  sae = SAE(
    params=fold.fold(released, scale, recipe.pre_encoder_bias),
    config=SAEConfig(
      family=recipe.family,
      site=stream.site,
      model=stream.model,
      token_policy=stream.policy,
      provenance=artifacts.canonical_json(provenance),
    ),
  )
  gemma_scope.save(sae, folder)
