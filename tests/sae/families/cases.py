"""Made-up parameters, rows and batches for tests of the families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import code as codes
from gemmascope_jax.sae import families
from gemmascope_jax.sae.families import dictionary
from gemmascope_jax.sae.families.dictionary import Batch, Sample


def rows(seed=0, rows=64, width=6):
  """Float64 [rows, width]."""
  return np.random.default_rng(seed).normal(size=(rows, width))


def params(seed=0, width=6, latents=32):
  """A JumpReLU dictionary, float64, a good part of whose latents fire."""
  rng = np.random.default_rng(seed)
  w_dec = rng.normal(size=(latents, width))
  return {
    "w_enc": rng.normal(size=(width, latents)).T,
    "b_enc": rng.normal(size=latents) * 0.1,
    "w_dec": w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True),
    "b_dec": rng.normal(size=width),
    "threshold": rng.uniform(0.5, 1.5, latents),
  }


def sample(x, y=None):
  """A `Sample` of float32 rows; the targets are x itself unless given."""
  x = jnp.asarray(x, jnp.float32)
  y = x if y is None else jnp.asarray(y, jnp.float32)
  return Sample(x, y, x.mean(axis=0), y.mean(axis=0))


def batch(x, y=None, coefficient=0.0, target_l0=4.0, dead=None, latents=32):
  """A `Batch`; the targets are x itself unless given."""
  y = x if y is None else y
  dead = jnp.zeros(latents, bool) if dead is None else dead
  return Batch(x, y, coefficient, target_l0, dead)


def dictionary_params(**more):
  """`params` without thresholds, and with a family's own."""
  found = params()
  del found["threshold"]
  return found | more


def linear(params, x):
  """(x - b_dec) W_enc^T in NumPy."""
  return (x - params["b_dec"]) @ params["w_enc"].T


def squared(params, values, y):
  """mean_B ||values W_dec + b_dec - y||^2 in NumPy."""
  error = values @ params["w_dec"] + params["b_dec"] - y
  return np.square(error).sum(axis=1).mean()


def check_loss(recipe, params, x, formula, coefficient=0.0, dead=None):
  """A family's loss and gradients in float64, against a formula in NumPy.

  Args:
    recipe: see `Recipe`.
    params: float64 arrays.
    x: float64 [B, D].
    formula: (params, held) -> the loss, where `held` are the parameters in
      terms whose gradient is stopped; differentiated by finite differences.
    coefficient: lambda.
    dead: bool [M] or None.

  Returns:
    The loss's aux.
  """

  def loss(params):
    code = codes.Dense.of(
      x, dictionary.shift(recipe, params), params["w_enc"], "highest"
    )
    given = batch(x, coefficient=coefficient, dead=dead)
    return families.of(recipe.family).loss(recipe, params, code, given)

  with jax.enable_x64(True):
    (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(
      jax.tree.map(jnp.asarray, params)
    )
  assert float(value) == pytest.approx(formula(params, params), rel=1e-12)
  for name, found in gradients.items():
    expected = _differences(formula, params, name)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
      found, expected, rtol=1e-6, atol=1e-7 * scale + 1e-9, err_msg=name
    )
  return aux


def _differences(formula, params, name, step=1e-6):
  """Central differences with respect to one parameter."""
  value = np.asarray(params[name], np.float64)
  out = np.zeros_like(value)
  for index in np.ndindex(value.shape):
    ends = []
    for sign in (1, -1):
      moved = value.copy()
      moved[index] += sign * step
      ends.append(formula(params | {name: moved}, params))
    out[index] = (ends[0] - ends[1]) / (2 * step)
  return out
