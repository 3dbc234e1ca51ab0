"""BatchTopK against its formula, and its one threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import batch_topk
from gemmascope_jax.sae.train_step import Knobs
from tests.sae.families import cases


def _latents(params, x, k):
  """The k B largest, by a sort; and the smallest of them."""
  pre = cases.linear(params, x) + params["b_enc"]
  smallest = np.sort(pre.ravel())[-k * len(x)]
  return np.where(pre >= smallest, np.maximum(pre, 0), 0), max(smallest, 0)


def test_loss_and_gradients_are_those_of_the_formula():
  params, x = (
    cases.dictionary_params(running_threshold=0.7),
    cases.rows(rows=16),
  )

  def formula(params, held):
    del held
    return cases.squared(params, _latents(params, x, 5)[0], x)

  recipe = Recipe(family="batch_topk", width=32, k=5)
  aux = cases.check_loss(recipe, params, x, formula)
  f, smallest = _latents(params, x, 5)
  assert float(aux["l0"]) == 5 and len(set((f > 0).sum(axis=1))) > 1
  assert float(aux["assign"]["running_threshold"]) == pytest.approx(
    0.95 * 0.7 + 0.05 * smallest
  )


def test_auxk_is_topks():
  params, x = (
    cases.dictionary_params(running_threshold=0.0),
    cases.rows(rows=16),
  )
  dead = np.arange(32) < 8

  def formula(params, held):
    f, held_f = (_latents(p, x, 5)[0] for p in (params, held))
    pre = cases.linear(params, x) + params["b_enc"]
    rest = x - held_f @ held["w_dec"] - held["b_dec"]
    rest = rest - np.maximum(pre[:, :8], 0) @ params["w_dec"][:8]
    auxiliary = 8 / 9 * np.square(rest).sum(axis=1).mean()
    return cases.squared(params, f, x) + auxiliary / 32

  recipe = Recipe(
    family="batch_topk", width=32, k=5, aux_k=9, aux_coefficient=1 / 32
  )
  cases.check_loss(recipe, params, x, formula, dead=jnp.asarray(dead))


def test_too_few_positive_latents_are_all_kept():
  params, x = (
    cases.dictionary_params(running_threshold=0.0),
    cases.rows(rows=16),
  )
  params["b_enc"] = params["b_enc"] - 4

  def formula(params, held):
    del held
    return cases.squared(params, _latents(params, x, 5)[0], x)

  recipe = Recipe(family="batch_topk", width=32, k=5)
  aux = cases.check_loss(recipe, params, x, formula)
  assert 0 < float(aux["l0"]) < 5
  assert float(aux["assign"]["running_threshold"]) == 0


def test_the_threshold_starts_where_the_sample_keeps_k():
  recipe = Recipe(family="batch_topk", width=32, k=3, batch_size=50)
  sample = cases.sample(cases.rows(rows=64))
  params = batch_topk.init(recipe, jax.random.key(0), sample)
  pre = np.asarray(sample.x[:50] @ params["w_enc"].T)
  # The product here may be off by a rounding from the one that chose it.
  threshold = float(params["running_threshold"])
  assert (pre > threshold * (1 - 1e-5)).sum() == 150
  assert (pre > threshold * (1 + 1e-5)).sum() == 149


def test_the_released_threshold_keeps_k_latents_of_an_average_row():
  recipe = Recipe(
    family="batch_topk",
    width=32,
    k=3,
    batch_size=256,
    steps=300,
    learning_rate=3e-3,
    learning_rate_warmup_steps=0,
    learning_rate_decay_share=0.5,
  )
  rows = cases.rows(rows=256 * 20, width=6).astype(np.float32)
  state = sweep.init_fn(recipe)(jax.random.key(0), cases.sample(rows[:256]))
  start = float(state.params["running_threshold"])
  step = sweep.step_fn(recipe)
  for i in range(recipe.steps):
    x = jnp.asarray(rows[256 * (i % 20) :][:256])
    state, values = step(state, x, x, Knobs.of(recipe))
  assert abs(float(values["running_threshold"]) / start - 1) > 0.1
  released = jax.tree.map(np.asarray, batch_topk.release(recipe, state.params))
  assert np.ptp(released["threshold"]) == 0
  pre = (rows - released["b_dec"]) @ released["w_enc"].T + released["b_enc"]
  active = pre > released["threshold"]
  assert active.sum(axis=1).mean() == pytest.approx(3, rel=0.03)
