"""Every family's finished SAE, on raw activations, is the trained one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import families, fold
from gemmascope_jax.sae.config import FAMILIES, Recipe
from gemmascope_jax.sae.sae import SAE, SAEConfig
from tests.sae.families import cases
from tests.sae.families.topk_test import largest

_RNG = np.random.default_rng(5)
_OWN = {
  "jumprelu": {"threshold": _RNG.uniform(0.5, 1.5, 32)},
  "gated": {"r_mag": _RNG.normal(size=32) / 3, "b_mag": _RNG.normal(size=32)},
  "topk": {},
  "batch_topk": {"running_threshold": np.float64(0.9)},
  "relu": {},
}


def _latents(family, params, linear):
  """A family's latents at the end of training, in NumPy."""
  pre = linear + params["b_enc"]
  if family == "topk":
    return largest(pre, 5)
  if family == "gated":
    mag = linear * np.exp(params["r_mag"]) + params["b_mag"]
    return np.where(pre > 0, np.maximum(mag, 0), 0)
  threshold = {
    "jumprelu": params.get("threshold"),
    "batch_topk": params.get("running_threshold"),
    "relu": 0.0,
  }[family]
  return np.where(pre > threshold, pre, 0)


@pytest.mark.parametrize("pre_encoder_bias", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_raw_space_equals_training_space(family, pre_encoder_bias):
  recipe = Recipe(
    family=family, width=32, k=5, pre_encoder_bias=pre_encoder_bias
  )
  params = cases.dictionary_params(**_OWN[family])
  x, scale = cases.rows(5), 37.5
  shift = params["b_dec"] if pre_encoder_bias else 0
  latents = _latents(family, params, (x - shift) @ params["w_enc"].T)
  given = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
  released = families.of(family).release(recipe, given)
  sae = SAE(
    fold.fold(released, scale, pre_encoder_bias),
    SAEConfig(family=family, k=5 if family == "topk" else None),
  )
  found = sae.encode(scale * x)
  np.testing.assert_array_equal(found > 0, latents > 0)
  np.testing.assert_allclose(found, scale * latents, rtol=2e-4, atol=1e-3)
  np.testing.assert_allclose(
    sae(scale * x),
    scale * (latents @ params["w_dec"] + params["b_dec"]),
    rtol=2e-4,
    atol=2e-3,
  )
