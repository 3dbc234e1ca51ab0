"""A folded SAE on raw activations is the trained one on normalised ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import code as codes
from gemmascope_jax.sae import fold, sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.sae.train_step import Knobs
from tests.sae.families import cases


@pytest.mark.parametrize("pre_encoder_bias", [True, False])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 37.5])
def test_raw_space_equals_training_space(pre_encoder_bias, scale):
  recipe = Recipe(width=32, pre_encoder_bias=pre_encoder_bias)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), cases.params())
  x = jnp.asarray(cases.rows(5), jnp.float32)
  shift = dictionary.shift(recipe, params)
  code = codes.Dense.of(x, shift, params["w_enc"], "highest")
  pre = dictionary.pre_activations(params, code)
  latents = jnp.where(pre > params["threshold"][None, :], pre, 0)
  expected = scale * dictionary.reconstruct(recipe, params, code, latents, x)
  sae = SAE(fold.fold(params, scale, pre_encoder_bias))
  found = sae.encode(scale * x)
  assert 0 < (np.asarray(latents) > 0).mean() < 1
  np.testing.assert_array_equal(found > 0, latents > 0)
  np.testing.assert_allclose(
    found, scale * latents, rtol=1e-4, atol=1e-5 * scale
  )
  np.testing.assert_allclose(
    sae(scale * x), expected, rtol=1e-4, atol=1e-5 * scale
  )


def test_folding_refuses_a_scale_of_zero():
  with pytest.raises(ValueError, match="scale C is 0.0; expected a positive"):
    fold.fold(cases.params(), 0.0, True)


@pytest.mark.parametrize("factor", [2.0**-7, 2.0**7])
def test_training_does_not_depend_on_the_activations_scale(factor):
  """c x for c a power of two: the normalised rows are the same numbers."""
  recipe = Recipe(
    width=16,
    batch_size=32,
    steps=20,
    learning_rate=1e-2,
    sparsity_coefficient=1e-2,
    bandwidth=0.1,
    learning_rate_warmup_steps=2,
    sparsity_warmup_steps=2,
    threshold_init=0.1,
    bias_init="mean",
  )

  def released(c):
    rows = (cases.rows(6, rows=640) * c).astype(np.float32)
    scale = float(np.sqrt(np.square(rows.astype(np.float64)).sum(1).mean()))
    unit = jnp.asarray(rows / np.float32(scale))
    state = sweep.init_fn(recipe)(jax.random.key(0), cases.sample(unit))
    step = sweep.step_fn(recipe)
    for i in range(recipe.steps):
      x = unit[32 * i : 32 * (i + 1)]
      state, _ = step(state, x, x, Knobs.of(recipe))
    return fold.fold(state.params, scale, True), rows

  base, rows = released(1.0)
  other, scaled = released(factor)
  for field in dataclasses.fields(base):
    value, moved = getattr(base, field.name), getattr(other, field.name)
    same = 1.0 if field.name in ("w_enc", "w_dec") else factor
    np.testing.assert_allclose(moved, same * value, rtol=1e-6)
  np.testing.assert_array_equal(
    SAE(base).encode(rows) > 0, SAE(other).encode(scaled) > 0
  )
