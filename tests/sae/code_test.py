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


def _code(slots=9, rows=70, latents=40):
  """A code with empty, short and (for 9 slots) spilling rows, and its matrix."""
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 8, rows)
  counts[[0, 3, 4, 69]] = 0, 9, 10, latents
  counts[20:25] = 30
  present = np.arange(latents) < counts[:, None]
  present = rng.permuted(present, axis=1)
  values = rng.normal(size=(rows, latents)).astype(np.float32)
  linear = np.where(present, values, -9).astype(np.float32)
  chosen = kernels.choose(
    linear, np.zeros(latents, "f4"), np.full((1, 1), -8.0, "f4"), 100, slots
  )
  assert int(chosen.needed) == rows + sum(
    max(0, -(-c // slots) - 1) for c in counts
  )
  return chosen, np.where(present, values, 0).astype(np.float64)


@pytest.mark.parametrize("slots", [9, 40])
@pytest.mark.parametrize("width", [1, 17, 1100])
def test_kernels_equal_numpy(width, slots):
  (values, where, _), full = _code(slots)
  rng = np.random.default_rng(1)
  matrix = rng.normal(size=(40, width)).astype(np.float32)
  vectors = rng.normal(size=(70, width)).astype(np.float32)
  close = dict(rtol=1e-5, atol=3e-5)
  np.testing.assert_allclose(
    kernels.combine(values, matrix, where, 70), full @ matrix, **close
  )
  np.testing.assert_allclose(
    kernels.outer(values, vectors, where, 40), full.T @ vectors, **close
  )
  np.testing.assert_allclose(
    kernels.total(values, where, 40), full.sum(axis=0), **close
  )
  found = kernels.dots(vectors, matrix, where)
  indices, counts, row = map(np.asarray, where)
  products = (vectors @ matrix.T)[np.minimum(row, 69)[:, None], indices]
  used = np.arange(slots)[None, :] < counts[:, None]
  np.testing.assert_allclose(
    found, np.where(used, products, 0), rtol=1e-5, atol=1e-4
  )


@pytest.mark.parametrize("latents", [40, 64, 1000])
def test_choose_finds_just_the_latents_above_the_bound(latents):
  rng = np.random.default_rng(2)
  linear = rng.normal(size=(33, latents)).astype(np.float32)
  offset = rng.normal(size=latents).astype(np.float32)
  for shape in ((1, latents), (33, 1), (33, latents), (1, 1)):
    bound = rng.uniform(0.5, 2, shape).astype(np.float32)
    above = linear + offset[None, :] > bound
    counts = above.sum(axis=1)
    for slots in (7, latents):
      lines = 33 + int((counts // slots).sum())
      values, where, needed = kernels.choose(
        linear, offset, bound, lines, slots
      )
      values, where = jax.tree.map(np.asarray, (values, where))
      assert needed == 33 + np.maximum(-(-counts // slots) - 1, 0).sum()
      np.testing.assert_array_equal(where.rows[:33], np.arange(33))
      assert (where.rows[int(needed) :] == 33).all()
      found = np.full((33, latents), np.nan, np.float32)
      for line in range(int(needed)):
        count, row = where.counts[line], where.rows[line]
        index = where.indices[line, :count]
        assert (np.diff(index) > 0).all()
        found[row, index] = values[line, :count]
      np.testing.assert_array_equal(found, np.where(above, linear, np.nan))
      assert (values == kernels.NEVER).sum() == (values.size - above.sum())
    few = kernels.choose(linear, offset, bound, 33, 7)
    assert few.needed == 33 + np.maximum(-(-counts // 7) - 1, 0).sum()
    assert few.values.shape == (33, 7)


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
  dead = jnp.arange(256) % 3 == 0
  return recipe, params, cases.batch(x, coefficient=0.01, dead=dead)


def _usual_count(recipe, params, batch):
  """Latents above the bound that nine rows in ten do not exceed."""
  pre = codes.product(
    batch.x, dictionary.shift(recipe, params), params["w_enc"], "highest"
  )
  pre = pre + params["b_enc"][None, :]
  bound = families.of(recipe.family).bound(recipe, params, pre, batch)
  counts = (pre > bound).sum(axis=1)
  assert counts.max() > jnp.quantile(counts, 0.9)
  return int(jnp.quantile(counts, 0.9))


@pytest.mark.parametrize(
  ("family", "changes"),
  [
    ("jumprelu", {}),
    ("jumprelu", {"pre_encoder_bias": False, "threshold_parameter": "log"}),
    ("jumprelu", {"sparsity_loss": "l0_target", "frequency_coefficient": 0.1}),
    ("jumprelu", {"prefixes": (16, 100), "skip": True}),
    ("gated", {"gated_loss": "ri_l1"}),
    ("gated", {"gated_loss": "original", "skip": True}),
    ("topk", {}),
    ("topk", {"aux_coefficient": 1 / 32, "aux_k": 20}),
    ("batch_topk", {"prefixes": (16, 100)}),
    ("batch_topk", {"aux_coefficient": 1 / 32, "aux_k": 20}),
    ("relu", {"pre_encoder_bias": False}),
  ],
)
def test_a_sparse_step_is_the_dense_one(family, changes):
  recipe, params, batch = _problem(family, **changes)
  loss, aux, gradients = train_step._dense(recipe, params, batch)
  # Some rows spill, except where they may not; all do.
  whole = family == "topk" or "aux_coefficient" in changes
  most = 200 if whole else _usual_count(recipe, params, batch)
  for capacity, dense in ((most, 0), (4, 1)):
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
      assert scale > 0 or name == "running_threshold", name


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
