"""TopK and AuxK against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import topk
from tests.sae.families import cases

_RECIPE = Recipe(family="topk", width=32, k=5)


def largest(values, k):
  """The k largest positive numbers of each row, by a sort."""
  place = np.argsort(np.argsort(-values, axis=1), axis=1)
  return np.where(place < k, np.maximum(values, 0), 0)


def _latents(params, x, k=5):
  return largest(cases.linear(params, x) + params["b_enc"], k)


def test_loss_and_gradients_are_those_of_the_formula():
  params, x = cases.dictionary_params(), cases.rows(rows=16)

  def formula(params, held):
    del held
    return cases.squared(params, _latents(params, x), x)

  aux = cases.check_loss(_RECIPE, params, x, formula)
  assert float(aux["l0"]) == 5
  np.testing.assert_array_equal(
    aux["fired"], (_latents(params, x) > 0).sum(axis=0)
  )


@pytest.mark.parametrize(("aux_k", "deaths"), [(3, 8), (12, 8), (3, 0)])
def test_auxk_explains_the_error_by_dead_latents(aux_k, deaths):
  params, x = cases.dictionary_params(), cases.rows(rows=16)
  dead = np.arange(32) < deaths

  def formula(params, held):
    error = x - _latents(held, x) @ held["w_dec"] - held["b_dec"]
    pre = np.where(dead, cases.linear(params, x) + params["b_enc"], 0)
    rest = error - largest(pre, aux_k) @ params["w_dec"]
    share = min(deaths / aux_k, 1)
    auxiliary = share * np.square(rest).sum(axis=1).mean()
    return cases.squared(params, _latents(params, x), x) + auxiliary / 32

  recipe = Recipe(
    family="topk", width=32, k=5, aux_k=aux_k, aux_coefficient=1 / 32
  )
  cases.check_loss(recipe, params, x, formula, dead=jnp.asarray(dead))


def test_a_row_of_few_positive_latents_keeps_those():
  params, x = cases.dictionary_params(), cases.rows(rows=16)
  params["b_enc"] = params["b_enc"] - 4

  def formula(params, held):
    del held
    return cases.squared(params, _latents(params, x), x)

  aux = cases.check_loss(_RECIPE, params, x, formula)
  assert 0 < float(aux["l0"]) < 5


def test_the_bound_admits_what_is_kept_and_what_auxk_needs():
  pre = cases.rows(3, rows=40, width=512).astype(np.float32)
  pre[0] -= 10  # none positive
  pre[1, 7:] = -1
  pre[2] = 0.25  # all the same
  kept = largest(pre, 5) > 0
  kept[2] = True  # ties stay
  recipe = Recipe(family="topk", width=512, k=5)
  given = cases.batch(None, latents=512)
  bound = np.asarray(topk.bound(recipe, {}, jnp.asarray(pre), given))
  assert bound.shape == (40, 1)
  assert (pre > bound)[kept].all() and (bound >= 0).all()
  assert ((pre > bound) & ~kept).sum() < 0.5 * kept.sum()
  recipe = Recipe(family="topk", width=512, k=5, aux_k=9, aux_coefficient=0.1)
  dead = np.arange(512) % 5 == 0
  needed = largest(np.where(dead, pre, 0), 9) > 0
  given = cases.batch(None, dead=jnp.asarray(dead))
  bound = np.asarray(topk.bound(recipe, {}, jnp.asarray(pre), given))
  assert (pre > bound)[kept | needed].all()
  assert ((pre > bound)[3:] & ~(kept | needed)[3:]).sum() < kept.sum()
