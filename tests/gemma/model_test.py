"""The forward pass against Hugging Face's, site by site."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.gemma import sites
from tests.data import tiny_gemma

TOKENS = np.random.default_rng(0).integers(1, 61, (3, 17))


def _mask(side):
  mask = np.ones(TOKENS.shape, bool)
  for row, padding in enumerate((0, 4, 11)):
    if side == "left":
      mask[row, :padding] = False
    elif side == "right":
      mask[row, TOKENS.shape[1] - padding :] = False
    else:
      mask[row, 3 : 3 + padding] = False
  return mask


def _all_sites(config):
  return tuple(
    f"{kind}.{layer}"
    for layer in range(config.num_layers)
    for kind in sites.KINDS
  )


def _difference(ours, theirs, mask):
  """Largest deviation, relative to the largest entry at the position."""
  scale = np.abs(theirs).max(-1, keepdims=True)
  return (np.abs(np.asarray(ours) - theirs) / scale)[mask].max()


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, tokens, mask):
  taps = _all_sites(config)
  return gemma.forward(config, params, tokens, taps=taps, mask=mask)


@pytest.mark.parametrize("side", [None, "left", "right", "gap"])
def test_sites_and_logits_equal_hugging_face(oracle, side):
  mask = None if side is None else _mask(side)
  logits, acts = oracle.run(TOKENS, mask)
  out = _forward(oracle.config, oracle.params, TOKENS, mask)
  real = np.ones(TOKENS.shape, bool) if mask is None else mask
  assert set(out.acts) == set(acts)
  for site, theirs in acts.items():
    assert out.acts[site].dtype == jnp.float32
    assert out.acts[site].shape[-1] == sites.site_width(oracle.config, site)
    assert _difference(out.acts[site], theirs, real) < 1e-5, site
  assert _difference(out.logits, logits, real) < 1e-5
  last = f"res.{oracle.config.num_layers - 1}"
  np.testing.assert_array_equal(out.residual, out.acts[last])


def test_a_row_of_padding_alone_gives_no_nan(oracle):
  mask = _mask("left")
  mask[1] = False
  out = _forward(oracle.config, oracle.params, TOKENS, mask)
  for array in jax.tree.leaves(out):
    assert np.isfinite(array).all()


@pytest.mark.parametrize("bad", [-1, "size"])
def test_an_id_that_is_not_in_the_vocabulary_is_named(bad):
  lm = tiny_gemma.lm()
  config, params = lm.config, lm.params
  bad = config.vocab_size if bad == "size" else bad
  tokens = np.ones((2, 5), np.int32)
  gemma.forward(config, params, tokens, num_layers=1)
  tokens[1, 3] = bad
  with pytest.raises(
    ValueError, match=rf"token id {bad} at \[1, 3\]: .* from 0 to \d+"
  ):
    gemma.forward(config, params, tokens, num_layers=1)
