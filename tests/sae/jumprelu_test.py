"""The training loss against the formulas, and the paper's starting values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import jumprelu
from gemmascope_jax.sae.config import Recipe

_RECIPE = Recipe(width=32, batch_size=16, steps=10, bandwidth=0.2)


def _rows(seed=0, rows=64, width=6):
  return np.random.default_rng(seed).normal(size=(rows, width))


def _params(seed=0, width=6, latents=32):
  rng = np.random.default_rng(seed)
  w_dec = rng.normal(size=(latents, width))
  return jumprelu.Params(
    w_enc=rng.normal(size=(width, latents)),
    b_enc=rng.normal(size=latents) * 0.1,
    w_dec=w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True),
    b_dec=rng.normal(size=width),
    threshold=rng.uniform(0.5, 1.5, latents),
  )


def test_loss_is_equation_four():
  params, x, coefficient = _params(), _rows(rows=16), 0.03
  with jax.enable_x64(True):
    params64 = jax.tree.map(jnp.asarray, params)
    loss, aux = jumprelu.loss(_RECIPE, params64, jnp.asarray(x), coefficient)
  pre = (x - params.b_dec) @ params.w_enc + params.b_enc
  f = pre * (pre > params.threshold)
  error = f @ params.w_dec + params.b_dec - x
  squared = np.square(error).sum(axis=1).mean()
  l0 = (f > 0).sum(axis=1).mean()
  assert float(loss) == pytest.approx(squared + coefficient * l0, rel=1e-10)
  assert float(aux["squared_error"]) == pytest.approx(squared, rel=1e-10)
  assert float(aux["l0"]) == pytest.approx(l0)


def test_gradients_follow_the_closed_form():
  """Per-sample formulas of the paper, written out in float64."""
  params, x, coefficient = _params(3), _rows(4, rows=16), 0.05
  with jax.enable_x64(True):
    params64 = jax.tree.map(jnp.asarray, params)
    grads, _ = jax.grad(jumprelu.loss, argnums=1, has_aux=True)(
      _RECIPE, params64, jnp.asarray(x), coefficient
    )
  inner = x - params.b_dec
  pre = inner @ params.w_enc + params.b_enc
  active = pre > params.threshold
  f = pre * active
  d_out = 2 * (f @ params.w_dec + params.b_dec - x) / len(x)
  d_f = d_out @ params.w_dec.T
  near = np.abs(pre - params.threshold) < _RECIPE.bandwidth / 2
  d_threshold = (
    -(near * (params.threshold * d_f + coefficient / len(x))).sum(axis=0)
    / _RECIPE.bandwidth
  )
  d_pre = d_f * active
  close = dict(rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(grads.threshold, d_threshold, **close)
  np.testing.assert_allclose(grads.w_enc, inner.T @ d_pre, **close)
  np.testing.assert_allclose(grads.b_enc, d_pre.sum(axis=0), **close)
  np.testing.assert_allclose(grads.w_dec, f.T @ d_out, **close)
  d_b_dec = d_out.sum(axis=0) - (d_pre @ params.w_enc.T).sum(axis=0)
  np.testing.assert_allclose(grads.b_dec, d_b_dec, **close)


def test_init_is_the_papers():
  rows = jnp.asarray(_rows(), jnp.float32)
  params = jumprelu.init(_RECIPE, jax.random.key(0), rows, rows.mean(axis=0))
  np.testing.assert_allclose(
    np.linalg.norm(params.w_dec, axis=1), np.ones(32), rtol=1e-6
  )
  np.testing.assert_array_equal(params.w_enc, params.w_dec.T)
  np.testing.assert_array_equal(params.b_enc, np.zeros(32))
  np.testing.assert_array_equal(params.b_dec, np.zeros(6))
  np.testing.assert_array_equal(params.threshold, np.full(32, 0.001, "f4"))


def test_init_can_start_at_the_mean_and_at_a_given_l0():
  recipe = Recipe(
    width=32, batch_size=16, steps=1, bias_init="mean", threshold_init_l0=4.0
  )
  rows = jnp.asarray(_rows(rows=4_000) + 10, jnp.float32)
  mean = rows.mean(axis=0)
  params = jumprelu.init(recipe, jax.random.key(0), rows, mean)
  np.testing.assert_array_equal(params.b_dec, mean)
  fired = np.asarray(jumprelu.encode(recipe, params, rows)) > 0
  assert fired.sum(axis=1).mean() == pytest.approx(4.0, rel=0.02)
  # Every latent alike, not a few that always fire.
  np.testing.assert_allclose(fired.mean(axis=0), 4 / 32, rtol=0.05)


@pytest.mark.parametrize(
  ("field", "value", "says"),
  [
    ("family", "jumprleu", "expected one of jumprelu"),
    ("width", 0, "must be positive"),
    ("bandwidth", 0.0, "trains no threshold"),
    ("sparsity_coefficient", -1.0, "must not be negative"),
    ("bias_init", "median", "expected one of zeros, mean"),
  ],
)
def test_recipe_refuses_nonsense(field, value, says):
  with pytest.raises(ValueError, match=f"{field} is .*{says}"):
    Recipe.from_dict({field: value})


def test_recipe_refuses_unknown_keys():
  with pytest.raises(ValueError, match="unknown recipe key lambda; known"):
    Recipe.from_dict({"lambda": 1e-4})
