"""The sparse view against the dense one, and the kernels against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import code as codes
from gemmascope_jax.sae import families, kernels, sweep, train_step
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary
from gemmascope_jax.sae.train_step import Knobs
from tests.sae.families import cases

pytestmark = pytest.mark.skipif(
  not kernels.available(), reason="no C++ compiler"
)


def _code(seed=0, rows=70, slots=9, latents=40):
  rng = np.random.default_rng(seed)
  counts = rng.integers(0, slots + 1, rows).astype(np.int32)
  counts[:2] = 0, slots
  indices = np.zeros((rows, slots), np.int32)
  values = rng.normal(size=(rows, slots)).astype(np.float32)
  full = np.zeros((rows, latents))
  for b, count in enumerate(counts):
    chosen = np.sort(rng.choice(latents, count, replace=False))
    indices[b, :count] = chosen
    full[b, chosen] = values[b, :count]
  return values, indices, counts, full


@pytest.mark.parametrize("width", [1, 17, 700])
def test_kernels_equal_numpy(width):
  values, indices, counts, full = _code()
  rng = np.random.default_rng(1)
  matrix = rng.normal(size=(40, width)).astype(np.float32)
  rows = rng.normal(size=(70, width)).astype(np.float32)
  close = dict(rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    kernels.combine(values, matrix, indices, counts), full @ matrix, **close
  )
  np.testing.assert_allclose(
    kernels.outer(values, rows, indices, counts, 40), full.T @ rows, **close
  )
  np.testing.assert_allclose(
    kernels.total(values, indices, counts, 40), full.sum(axis=0), **close
  )
  found = kernels.dots(rows, matrix, indices, counts)
  products = np.take_along_axis(rows @ matrix.T, indices, axis=1)
  used = np.arange(9) < counts[:, None]
  np.testing.assert_allclose(found, np.where(used, products, 0), **close)


@pytest.mark.parametrize("latents", [40, 64, 1000])
def test_choose_finds_just_the_latents_above_the_bound(latents):
  rng = np.random.default_rng(2)
  linear = rng.normal(size=(33, latents)).astype(np.float32)
  for bound in (
    rng.uniform(0.5, 2, (1, latents)).astype(np.float32),
    rng.uniform(0.5, 2, (33, 1)).astype(np.float32),
  ):
    above = linear > bound
    chosen = kernels.choose(linear, bound, latents)
    np.testing.assert_array_equal(chosen.counts, above.sum(axis=1))
    assert int(chosen.most) == above.sum(axis=1).max()
    for b in range(33):
      count = int(chosen.counts[b])
      np.testing.assert_array_equal(
        chosen.indices[b, :count], np.flatnonzero(above[b])
      )
      np.testing.assert_array_equal(
        chosen.values[b, :count], linear[b, above[b]]
      )
    assert (np.asarray(chosen.values) == kernels.NEVER).sum() == (
      linear.size - above.sum()
    )
    few = kernels.choose(linear, bound, 3)
    assert int(few.most) == int(chosen.most) and few.values.shape == (33, 3)
    assert int(few.counts.max()) == 3


def _problem(family, **changes):
  recipe = Recipe(
    family=family,
    width=256,
    batch_size=64,
    steps=20,
    bandwidth=0.2,
    threshold_init=0.3,
    sparsity_coefficient=1e-2,
    sparsity_warmup_steps=0,
    learning_rate=1e-3,
    k=12,
    step="dense",
    **changes,
  )
  x = jnp.asarray(cases.rows(rows=64, width=24) / 3 + 0.2, jnp.float32)
  sample = cases.sample(x)
  params = families.of(family).init(recipe, jax.random.key(0), sample)
  key = jax.random.key(1)
  params = {
    # Away from the start, whose symmetries would hide mistakes.
    name: value
    + 0.03 * jax.random.normal(jax.random.fold_in(key, i), value.shape)
    for i, (name, value) in enumerate(sorted(params.items()))
  }
  return recipe, params, cases.batch(x, coefficient=0.01, latents=256)


@pytest.mark.parametrize(
  ("family", "changes"),
  [
    ("jumprelu", {}),
    ("jumprelu", {"pre_encoder_bias": False, "threshold_parameter": "log"}),
    ("jumprelu", {"sparsity_loss": "l0_target", "frequency_coefficient": 0.1}),
    ("jumprelu", {"prefixes": (16, 100), "skip": True}),
  ],
)
def test_a_sparse_step_is_the_dense_one(family, changes):
  recipe, params, batch = _problem(family, **changes)
  loss, aux, gradients = train_step._dense(recipe, params, batch)
  for capacity, dense in ((256, 0), (4, 1)):
    room = dataclasses.replace(recipe, step="sparse", capacity=capacity)
    found = jax.jit(train_step._sparse, static_argnums=0)(room, params, batch)
    assert int(found[1].pop("fell_back")) == dense
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      found[1],
      dict(aux),
    )
    assert set(found[2]) == set(gradients)
    for name, expected in gradients.items():
      scale = float(jnp.abs(expected).max())
      np.testing.assert_allclose(
        found[2][name], expected, rtol=1e-5, atol=1e-5 * scale, err_msg=name
      )
      assert scale > 0, name


def test_sparse_training_follows_dense_training_and_says_when_it_fell_back():
  recipe = _problem("jumprelu")[0]
  x = jnp.asarray(cases.rows(rows=64, width=24) / 3, jnp.float32)
  ends = {}
  for kind, capacity in (("dense", 0), ("sparse", 192), ("sparse", 8)):
    now = dataclasses.replace(recipe, step=kind, capacity=capacity)
    state = sweep.init_fn(now)(jax.random.key(0), cases.sample(x))
    for _ in range(20):
      state, values = sweep.step_fn(now)(state, x, x, Knobs.of(now))
    ends[kind, capacity] = float(values["loss"]), int(state.dense_steps)
  losses = [loss for loss, _ in ends.values()]
  np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
  assert [dense for _, dense in ends.values()] == [0, 0, 20]


def test_the_dense_encoder_has_the_gradients_of_a_plain_product():
  x, shift = cases.rows(1, 10), cases.rows(2, 1)[0]
  w_enc = cases.rows(3, 14)
  weight = cases.rows(4, 10, 14)

  def ours(x, shift, w_enc):
    return (weight * codes.Dense.of(x, shift, w_enc, "highest").linear).sum()

  def plain(x, shift, w_enc):
    return (weight * ((x - shift[None, :]) @ w_enc.T)).sum()

  with jax.enable_x64(True):
    arguments = [jnp.asarray(a) for a in (x, shift, w_enc)]
    found = jax.grad(ours, argnums=(0, 1, 2))(*arguments)
    expected = jax.grad(plain, argnums=(0, 1, 2))(*arguments)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_the_shift_is_the_decoder_bias_or_nothing():
  params = {k: jnp.asarray(v) for k, v in cases.params().items()}
  with_bias, without = (
    dictionary.shift(Recipe(pre_encoder_bias=flag), params)
    for flag in (True, False)
  )
  np.testing.assert_array_equal(with_bias, params["b_dec"])
  np.testing.assert_array_equal(without, np.zeros(6))


def test_bfloat16_products_round_their_inputs_and_sum_in_float32():
  x, w = cases.rows(1, 20, 300), cases.rows(2, 15, 300)
  round_ = lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64)
  arrays = [jnp.asarray(a, jnp.float32) for a in (x, w)]
  found = codes.product(arrays[0], jnp.zeros(300), arrays[1], "bfloat16")
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(
    found, round_(x) @ round_(w).T, rtol=1e-4, atol=1e-4
  )
  assert np.abs(found - x @ w.T).max() > 1e-3
  code = codes.Dense(found, "bfloat16")
  values, d = cases.rows(3, 20, 15), cases.rows(4, 15, 7)
  out, pull = jax.vjp(
    code.decode, jnp.asarray(values, jnp.float32), jnp.asarray(d, jnp.float32)
  )
  cotangent = np.ones((20, 7), np.float32)
  d_values, d_decoder = pull(cotangent)
  np.testing.assert_allclose(
    out, round_(values) @ round_(d), rtol=1e-4, atol=1e-4
  )
  np.testing.assert_allclose(d_values, cotangent @ round_(d).T, rtol=1e-4)
  np.testing.assert_allclose(
    d_decoder, round_(values).T @ cotangent, rtol=1e-4, atol=1e-4
  )
