"""The Gated SAE against its formulas, and as a JumpReLU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import gated
from tests.sae.families import cases


def _params():
  rng = np.random.default_rng(7)
  return cases.dictionary_params(
    r_mag=rng.normal(size=32) * 0.3, b_mag=rng.normal(size=32) * 0.5
  )


def _gate_and_latents(params, x):
  linear = cases.linear(params, x)
  gate = linear + params["b_enc"]
  mag = linear * np.exp(params["r_mag"]) + params["b_mag"]
  return np.maximum(gate, 0), np.where(gate > 0, np.maximum(mag, 0), 0)


@pytest.mark.parametrize("variant", ["original", "ri_l1"])
def test_loss_and_gradients_are_those_of_the_formula(variant):
  params, x = _params(), cases.rows(rows=16)

  def formula(params, held):
    gate, f = _gate_and_latents(params, x)
    decoder, norms = params, np.linalg.norm(params["w_dec"], axis=1)
    if variant == "original":
      decoder, norms = held, np.ones(32)
    return (
      cases.squared(params, f, x)
      + 0.03 * (gate * norms).sum(axis=1).mean()
      + cases.squared(decoder, gate, x)
    )

  recipe = Recipe(family="gated", width=32, gated_loss=variant)
  aux = cases.check_loss(recipe, params, x, formula, coefficient=0.03)
  gate, f = _gate_and_latents(params, x)
  np.testing.assert_array_equal(aux["fired"], (f > 0).sum(axis=0))
  assert float(aux["auxiliary_error"]) == pytest.approx(
    cases.squared(params, gate, x)
  )
  assert ((gate > 0) & (f == 0)).any()  # open gates of no magnitude


def test_it_is_the_jumprelu_that_it_is_released_as():
  params, x = _params(), cases.rows(3, rows=2_000)
  _, expected = _gate_and_latents(params, x)
  with jax.enable_x64(True):
    given = jax.tree.map(jnp.asarray, params)
    found = gated.release(Recipe(family="gated", width=32), given)
    found = jax.tree.map(np.asarray, found)
  assert (found["threshold"] >= 0).all() and (found["threshold"] > 0).any()
  assert (found["threshold"] == 0).any()  # where b_mag is low
  pre = (x - params["b_dec"]) @ found["w_enc"].T + found["b_enc"]
  latents = np.where(pre > found["threshold"], pre, 0)
  np.testing.assert_array_equal(latents > 0, expected > 0)
  np.testing.assert_allclose(latents, expected, rtol=1e-12)
  np.testing.assert_array_equal(found["w_dec"], params["w_dec"])


def test_both_encoders_start_the_same():
  params = gated.init(
    Recipe(family="gated", width=32),
    jax.random.key(0),
    cases.sample(cases.rows()),
  )
  params = jax.tree.map(np.asarray, params)
  gate, f = _gate_and_latents(params, cases.rows())
  np.testing.assert_array_equal(f, gate)
  np.testing.assert_array_equal(params["w_enc"], params["w_dec"])
