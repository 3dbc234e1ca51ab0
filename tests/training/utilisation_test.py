"""Counted operations against the compiler's own count; the measured peak."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from gemmascope_jax import parallel
from gemmascope_jax.sae import sweep, train_step
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.training import utilisation
from tests.sae.families import cases

RECIPE = Recipe(width=512, batch_size=256, steps=10, step="dense")


def _compiled_flops(recipe, inputs, outputs):
  x = jnp.asarray(cases.rows(0, recipe.batch_size, inputs), jnp.float32)
  y = jnp.asarray(cases.rows(1, recipe.batch_size, outputs), jnp.float32)
  y = x if inputs == outputs else y
  state = sweep.init_fn(recipe)(jax.random.key(0), cases.sample(x, y))
  knobs = train_step.Knobs.of(recipe)
  lowered = sweep.step_fn(recipe).lower(state, x, y, knobs)
  return lowered.compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("inputs", "outputs"), [(128, 128), (64, 192)])
def test_a_dense_step_is_what_the_compiler_counts(inputs, outputs):
  recipe = RECIPE
  if inputs != outputs:
    recipe = dataclasses.replace(
      recipe, encoder_init="he_uniform", pre_encoder_bias=False
    )
  predicted = utilisation.step_flops(recipe, inputs, outputs)
  found = _compiled_flops(recipe, inputs, outputs)
  # The rest is work on single elements: pre-activations, weights, moments.
  assert predicted < found < 1.1 * predicted
  if inputs == outputs:
    assert predicted == 10 * 256 * inputs * 512


def test_a_sparse_step_is_the_encoder_and_a_little():
  dense = utilisation.step_flops(RECIPE, 128, 128)
  sparse = utilisation.step_flops(RECIPE, 128, 128, active=0)
  assert sparse == dense / 5
  some = utilisation.step_flops(RECIPE, 128, 128, active=512)
  assert some == dense


def test_the_peak_is_measured_once():
  peak = utilisation.peak("highest")
  assert 1e8 < peak < 1e16
  assert utilisation.peak("highest") == peak


def test_the_peak_of_many_devices():
  mesh = parallel.make_mesh({"data": 2, "model": 4})
  assert utilisation.peak("highest", mesh) > 1e8
