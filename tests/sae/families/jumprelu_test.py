"""The training loss against the formulas, and the paper's starting values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import code as codes
from gemmascope_jax.sae import straight_through
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary, jumprelu
from tests.sae.families import cases

_RECIPE = Recipe(width=32, batch_size=16, steps=10, bandwidth=0.2)


def _loss(recipe, params, x, coefficient):
  code = codes.Dense.of(
    x, dictionary.shift(recipe, params), params["w_enc"], "highest"
  )
  return jumprelu.loss(
    recipe, params, code, cases.batch(x, coefficient=coefficient)
  )


def test_loss_is_equation_four():
  params, x, coefficient = cases.params(), cases.rows(rows=16), 0.03
  with jax.enable_x64(True):
    params64 = jax.tree.map(jnp.asarray, params)
    loss, aux = _loss(_RECIPE, params64, jnp.asarray(x), coefficient)
  pre = (x - params["b_dec"]) @ params["w_enc"].T + params["b_enc"]
  f = pre * (pre > params["threshold"])
  error = f @ params["w_dec"] + params["b_dec"] - x
  squared = np.square(error).sum(axis=1).mean()
  l0 = (f > 0).sum(axis=1).mean()
  assert float(loss) == pytest.approx(squared + coefficient * l0, rel=1e-10)
  assert float(aux["squared_error"]) == pytest.approx(squared, rel=1e-10)
  assert float(aux["l0"]) == pytest.approx(l0)
  np.testing.assert_array_equal(aux["fired"], (f > 0).sum(axis=0))


def test_gradients_follow_the_closed_form():
  """Per-sample formulas of the paper, written out in float64."""
  params, x, coefficient = cases.params(3), cases.rows(4, rows=16), 0.05
  with jax.enable_x64(True):
    params64 = jax.tree.map(jnp.asarray, params)
    grads, _ = jax.grad(_loss, argnums=1, has_aux=True)(
      _RECIPE, params64, jnp.asarray(x), coefficient
    )
  inner = x - params["b_dec"]
  pre = inner @ params["w_enc"].T + params["b_enc"]
  active = pre > params["threshold"]
  f = pre * active
  d_out = 2 * (f @ params["w_dec"] + params["b_dec"] - x) / len(x)
  d_f = d_out @ params["w_dec"].T
  near = np.abs(pre - params["threshold"]) < _RECIPE.bandwidth / 2
  d_threshold = (
    -(near * (params["threshold"] * d_f + coefficient / len(x))).sum(axis=0)
    / _RECIPE.bandwidth
  )
  d_pre = d_f * active
  close = dict(rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(grads["threshold"], d_threshold, **close)
  np.testing.assert_allclose(grads["w_enc"], d_pre.T @ inner, **close)
  np.testing.assert_allclose(grads["b_enc"], d_pre.sum(axis=0), **close)
  np.testing.assert_allclose(grads["w_dec"], f.T @ d_out, **close)
  d_b_dec = d_out.sum(axis=0) - (d_pre @ params["w_enc"]).sum(axis=0)
  np.testing.assert_allclose(grads["b_dec"], d_b_dec, **close)


def test_a_log_threshold_gets_the_gradient_times_theta():
  params, x = cases.params(3), cases.rows(4, rows=16)
  logged = {k: v for k, v in params.items() if k != "threshold"}
  logged["log_threshold"] = np.log(params["threshold"])
  with jax.enable_x64(True):
    raw, log = [
      jax.grad(_loss, argnums=1, has_aux=True)(
        _RECIPE, jax.tree.map(jnp.asarray, p), jnp.asarray(x), 0.05
      )[0]
      for p in (params, logged)
    ]
  np.testing.assert_allclose(
    log["log_threshold"],
    np.asarray(raw["threshold"]) * params["threshold"],
    rtol=1e-9,
  )


def test_no_latent_at_or_below_the_bound_has_a_value_or_a_gradient():
  params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), cases.params())
  x = jnp.asarray(cases.rows(5, rows=500), jnp.float32)
  linear = codes.product(
    x, dictionary.shift(_RECIPE, params), params["w_enc"], "highest"
  )
  pre = linear + params["b_enc"][None, :]
  below = pre <= jumprelu.bound(_RECIPE, params, pre, cases.batch(x))
  theta = params["threshold"][None, :]
  matters = (pre > theta) | straight_through.kernel_window(
    pre, theta, _RECIPE.bandwidth
  )
  assert not np.asarray(below & matters).any()
  # ... and hardly more than those are above it.
  assert np.asarray(~below).sum() <= 1.01 * np.asarray(matters).sum() + 1


def test_init_is_the_papers():
  params = jumprelu.init(_RECIPE, jax.random.key(0), cases.sample(cases.rows()))
  np.testing.assert_allclose(
    np.linalg.norm(params["w_dec"], axis=1), np.ones(32), rtol=1e-6
  )
  np.testing.assert_array_equal(params["w_enc"], params["w_dec"])
  np.testing.assert_array_equal(params["b_enc"], np.zeros(32))
  np.testing.assert_array_equal(params["b_dec"], np.zeros(6))
  np.testing.assert_array_equal(params["threshold"], np.full(32, 0.001, "f4"))


def test_init_can_start_at_the_mean_and_at_a_given_l0():
  recipe = Recipe(
    width=32, batch_size=16, steps=1, bias_init="mean", threshold_init_l0=4.0
  )
  sample = cases.sample(cases.rows(rows=4_000) + 10)
  params = jumprelu.init(recipe, jax.random.key(0), sample)
  np.testing.assert_array_equal(params["b_dec"], sample.x_mean)
  pre = codes.product(sample.x, params["b_dec"], params["w_enc"], "highest")
  fired = np.asarray(pre > params["threshold"][None, :])
  assert fired.sum(axis=1).mean() == pytest.approx(4.0, rel=0.02)
  # Every latent alike, not a few that always fire.
  np.testing.assert_allclose(fired.mean(axis=0), 4 / 32, rtol=0.05)
