"""The estimators against their closed forms, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import straight_through

_BANDWIDTH = 0.3


def _case(seed=0, rows=64, latents=7):
  rng = np.random.default_rng(seed)
  pre = rng.normal(0.5, 0.5, (rows, latents))
  threshold = rng.uniform(0.2, 0.8, latents)
  cotangent = rng.normal(size=(rows, latents))
  return pre, threshold, cotangent


def _kernel(pre, threshold):
  return (np.abs((pre - threshold) / _BANDWIDTH) < 0.5).astype(np.float64)


def _pullback(function, pre, threshold, cotangent):
  with jax.enable_x64(True):
    out, pull = jax.vjp(
      lambda p, t: function(p, t, _BANDWIDTH),
      jnp.asarray(pre),
      jnp.asarray(threshold)[None, :],
    )
    assert out.dtype == jnp.float64
    grads = pull(jnp.asarray(cotangent))
    return np.asarray(out), np.asarray(grads[0]), np.asarray(grads[1])[0]


def test_jumprelu_matches_its_closed_form():
  pre, threshold, cotangent = _case()
  out, d_pre, d_threshold = _pullback(
    straight_through.jumprelu, pre, threshold, cotangent
  )
  active = pre > threshold
  np.testing.assert_array_equal(out, pre * active)
  np.testing.assert_allclose(d_pre, cotangent * active, rtol=1e-14)
  expected = -threshold / _BANDWIDTH * _kernel(pre, threshold) * cotangent
  np.testing.assert_allclose(d_threshold, expected.sum(axis=0), rtol=1e-12)


def test_step_matches_its_closed_form_and_gives_the_encoder_nothing():
  pre, threshold, cotangent = _case(1)
  out, d_pre, d_threshold = _pullback(
    straight_through.step, pre, threshold, cotangent
  )
  np.testing.assert_array_equal(out, (pre > threshold).astype(np.float64))
  np.testing.assert_array_equal(d_pre, np.zeros_like(pre))
  expected = -1 / _BANDWIDTH * _kernel(pre, threshold) * cotangent
  np.testing.assert_allclose(d_threshold, expected.sum(axis=0), rtol=1e-12)


def test_a_value_on_the_threshold_does_not_fire():
  pre = jnp.array([[0.5, 0.5001]])
  threshold = jnp.array([[0.5, 0.5]])
  out = straight_through.jumprelu(pre, threshold, 0.1)
  np.testing.assert_array_equal(out, [[0.0, pre[0, 1]]])


@pytest.mark.parametrize("coefficient", [0.0, 0.2])
def test_gradient_estimates_the_slope_of_the_expected_loss(coefficient):
  """Finite differences of the mean loss over a fine grid, one latent.

  With pre uniform the expected loss is smooth in the threshold; the mean of
  the estimator must be its slope (JumpReLU paper, section 4).
  """
  pre = (np.arange(100_000)[:, None] + 0.5) / 100_000
  target = 0.8 * pre + 0.1

  def loss(threshold, bandwidth=0.002):
    f = straight_through.jumprelu(jnp.asarray(pre), threshold, bandwidth)
    active = straight_through.step(jnp.asarray(pre), threshold, bandwidth)
    return (jnp.square(f - target) + coefficient * active).mean()

  with jax.enable_x64(True):
    at, width = 0.6, 0.01
    estimate = jax.grad(loss)(jnp.array([[at]]))[0, 0]
    difference = loss(jnp.array([[at + width]])) - loss(
      jnp.array([[at - width]])
    )
    np.testing.assert_allclose(
      float(estimate),
      float(difference) / (2 * width),
      rtol=5e-3,  # its bias is of the order of the bandwidth
    )
