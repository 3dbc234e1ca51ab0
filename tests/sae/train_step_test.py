"""The step as a whole: members apart, full size ahead of time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.sae import sweep, train_step
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families.dictionary import Sample
from gemmascope_jax.sae.train_step import Knobs
from tests.sae.families import cases


def test_last_fired_follows_the_latents():
  recipe = Recipe(
    width=8, batch_size=4, steps=3, threshold_init=0.5, learning_rate=1e-9
  )
  rows = jnp.asarray(np.random.default_rng(0).normal(size=(64, 5)), jnp.float32)
  state = sweep.init_fn(recipe)(jax.random.key(0), cases.sample(rows))
  knobs = Knobs.of(recipe)._replace(sparsity_coefficient=jnp.float32(0))
  fired = np.full(8, -1)
  for step in range(3):
    x = rows[4 * step : 4 * step + 4]
    pre = np.asarray(x @ state.params["w_enc"].T)
    fired[(pre > 0.5).any(axis=0)] = step
    state, _ = sweep.step_fn(recipe)(state, x, x, knobs)
  np.testing.assert_array_equal(state.last_fired, fired)
  assert (fired >= 0).any() and int(state.step) == 3


def test_the_step_for_gemma_2_2b_compiles_at_full_size():
  """Width 2^14 on a stream of 2,304, the paper's batch: shapes only."""
  recipe = Recipe()
  shape = jax.ShapeDtypeStruct
  x = shape((recipe.batch_size, 2304), jnp.float32)
  state = jax.eval_shape(
    functools.partial(train_step.init_state, recipe),
    jax.random.key(0),
    Sample(x, x, *[shape((2304,), jnp.float32)] * 2),
  )
  step = jax.jit(
    functools.partial(train_step.train_step, recipe), donate_argnums=0
  )
  compiled = step.lower(state, x, x, Knobs.of(recipe)).compile()
  memory = compiled.memory_analysis()
  # Weights and second moments, no first moments: 2 x (2 D M) floats, in place.
  arrays = 2 * 2 * 2304 * recipe.width * 4
  assert arrays < memory.argument_size_in_bytes < 1.15 * arrays
  assert memory.alias_size_in_bytes > 0.99 * arrays
  # Gradients (2 D M) and a few [B, M]: nothing of another order.
  codes = recipe.batch_size * recipe.width * 4
  assert memory.temp_size_in_bytes < arrays + 7 * codes
