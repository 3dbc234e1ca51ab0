"""Adam without a first moment against optax, schedules, the unit norm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemmascope_jax.sae import kernels, optimizer
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary


def _tree(seed):
  rng = np.random.default_rng(seed)
  return {
    "a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
    "b": jnp.asarray(rng.normal(size=5), jnp.float32),
  }


def test_second_moment_equals_adam_with_beta1_zero_and_holds_less():
  ours = optimizer.scale_by_second_moment(0.999, 1e-8)
  theirs = optax.scale_by_adam(b1=0.0, b2=0.999, eps=1e-8)
  params = _tree(0)
  state, other = ours.init(params), theirs.init(params)
  for seed in range(1, 6):
    updates, state = ours.update(_tree(seed), state)
    expected, other = theirs.update(_tree(seed), other)
    for key in updates:
      np.testing.assert_allclose(updates[key], expected[key], rtol=1e-6)
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert size(state) == size(params) + 1
  assert size(other) == 2 * size(params) + 1


def test_learning_rate_follows_the_paper():
  recipe = Recipe(steps=10_000)
  rate = lambda step: float(optimizer.learning_rate(recipe, 7e-5, step))
  assert rate(0) == pytest.approx(7e-6)
  assert rate(500) == pytest.approx(7e-5 * 0.55, rel=1e-5)
  assert rate(1_000) == pytest.approx(7e-5)
  assert rate(9_999) == pytest.approx(7e-5)


def test_learning_rate_can_decay_to_zero():
  recipe = Recipe(steps=100, learning_rate_decay_share=0.5)
  recipe = dataclasses.replace(recipe, learning_rate_warmup_steps=0)
  rate = lambda step: float(optimizer.learning_rate(recipe, 7e-5, step))
  assert rate(0) == rate(50) == pytest.approx(7e-5)
  assert rate(75) == pytest.approx(3.5e-5)
  assert rate(100) == 0


def test_sparsity_coefficient_warms_up_linearly():
  recipe = Recipe()
  assert float(optimizer.sparsity(recipe, 6e-4, 0)) == 0
  assert float(optimizer.sparsity(recipe, 6e-4, 5_000)) == pytest.approx(3e-4)
  assert float(optimizer.sparsity(recipe, 6e-4, 50_000)) == pytest.approx(6e-4)


def test_update_keeps_unit_rows_and_positive_thresholds():
  recipe = Recipe(
    width=8, learning_rate=1.0, learning_rate_warmup_steps=0, batch_size=4
  )
  rng = np.random.default_rng(0)
  random = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {
    "w_enc": random(8, 5),
    "b_enc": random(8),
    "w_dec": dictionary.unit_rows(random(8, 5)),
    "b_dec": random(5),
    "threshold": jnp.full(8, 0.01),
  }
  gradients = jax.tree.map(lambda x: jnp.ones_like(x), params)
  state = optimizer.adam(recipe).init(params)
  new, *_ = optimizer.apply(recipe, params, gradients, state, 1.0)
  np.testing.assert_allclose(
    np.linalg.norm(new["w_dec"], axis=1), np.ones(8), rtol=1e-6
  )
  assert (np.asarray(new["threshold"]) > 0).all()


def test_the_parallel_part_of_the_decoder_gradient_is_removed():
  rng = np.random.default_rng(1)
  random = lambda: jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
  w_dec = dictionary.unit_rows(random())
  gradient = random()
  left = optimizer.remove_parallel(gradient, w_dec)
  np.testing.assert_allclose((left * w_dec).sum(axis=1), np.zeros(6), atol=1e-6)
  along = gradient - left
  np.testing.assert_allclose(
    along, (along * w_dec).sum(axis=1, keepdims=True) * w_dec, atol=1e-6
  )


def test_the_update_projects_before_adam_sees_the_gradient():
  """Rows along axes: Adam's first step has size one in every other axis."""
  recipe = Recipe(width=5, learning_rate=1.0, learning_rate_warmup_steps=0)
  params = {
    "w_enc": jnp.ones((5, 5)),
    "b_enc": jnp.ones(5),
    "w_dec": jnp.eye(5),
    "b_dec": jnp.ones(5),
    "threshold": jnp.ones(5),
  }
  gradients = jax.tree.map(jnp.ones_like, params)
  state = optimizer.adam(recipe).init(params)
  new, *_ = optimizer.apply(recipe, params, gradients, state, 1.0)
  np.testing.assert_allclose(
    np.diag(new["w_dec"]), np.full(5, 5**-0.5), rtol=1e-5
  )


def test_frozen_parameters_stay_and_vectors_get_their_share_of_the_rate():
  recipe = Recipe(width=4, bias_learning_rate_scale=0.1, frozen=("w_dec",))
  params = {
    "w_enc": jnp.ones((4, 3)),
    "b_enc": jnp.ones(4),
    "w_dec": dictionary.unit_rows(jnp.arange(12.0).reshape(4, 3)),
    "b_dec": jnp.ones(3),
    "threshold": jnp.ones(4),
  }
  gradients = jax.tree.map(jnp.ones_like, params)
  state = optimizer.adam(recipe).init(params)
  new, *_ = optimizer.apply(recipe, params, gradients, state, 0.5)
  np.testing.assert_array_equal(new["w_dec"], params["w_dec"])
  np.testing.assert_allclose(new["w_enc"], 0.5, rtol=1e-5)
  for name in ("b_enc", "b_dec", "threshold"):
    np.testing.assert_allclose(new[name], 0.95, rtol=1e-5)


@pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")
@pytest.mark.parametrize("b1", [0.0, 0.9])
@pytest.mark.parametrize("frozen", [(), ("w_dec",)])
def test_the_one_pass_update_is_the_plain_one(b1, frozen):
  plain = Recipe(
    width=70,
    adam_b1=b1,
    bias_learning_rate_scale=0.3,
    frozen=frozen,
    step="dense",
  )
  fused = dataclasses.replace(plain, step="sparse")
  rng = np.random.default_rng(0)
  random = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  ours = theirs = {
    "w_enc": random(70, 9),
    "b_enc": random(70),
    "w_dec": dictionary.unit_rows(random(70, 11)),
    "b_dec": random(11),
    "threshold": jnp.full(70, 0.5),
  }
  state = other = optimizer.adam(plain).init(ours)
  for seed in range(4):
    gradients = {
      name: random(*value.shape) * 10.0**-seed for name, value in ours.items()
    }
    ours, state, norm = jax.jit(optimizer.apply, static_argnums=0)(
      fused, ours, gradients, state, 0.01
    )
    theirs, other, expected = optimizer.apply(
      plain, theirs, gradients, other, 0.01
    )
    np.testing.assert_allclose(norm, expected, rtol=1e-5)
    np.testing.assert_allclose(norm, optax.global_norm(gradients), rtol=1e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      (ours, state),
      (theirs, other),
    )
