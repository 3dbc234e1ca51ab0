"""A sequence in pieces, each with the cache of those before, is the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.gemma import kv_cache

# Windows are 1 to 5 tokens.
PROMPTS = np.random.default_rng(0).integers(1, 61, (4, 14))


def test_pieces_give_the_numbers_of_the_whole(oracle):
  pieces = 9, 1, 1, 3
  mask = np.arange(14)[None] >= np.array([[0], [5], [11], [3]])
  taps = ("res.0", "att.1", "mlp.1", "mlp_in.1")

  @functools.partial(jax.jit, static_argnums=3)
  def run(tokens, mask, cache, fresh=False):
    if fresh:  # its length is known
      cache = kv_cache.empty(oracle.config, 4, 17, jnp.float32)
    return gemma.forward(
      oracle.config, oracle.params, tokens, mask=mask, taps=taps, cache=cache
    )

  whole = run(PROMPTS, mask, None)
  cache, first = None, 0
  for piece in pieces:
    now = slice(first, first + piece)
    out = run(PROMPTS[:, now], mask[:, now], cache, cache is None)
    cache, first = out.cache, first + piece
    for name, part in (*out.acts.items(), ("logits", out.logits)):
      expected = whole.logits if name == "logits" else whole.acts[name]
      expected = np.asarray(expected[:, now])
      scale = np.abs(expected).max(-1, keepdims=True)
      error = np.abs(np.asarray(part) - expected) / scale
      assert error[mask[:, now]].max(initial=0) < 1e-5, (name, now)
  assert cache.length == 14
  np.testing.assert_array_equal(cache.mask[:, :14], mask)
  over = run(PROMPTS[:, :5], mask[:, :5], cache)  # 14 + 5 > 17
  assert np.isnan(over.logits).all()


def test_caches_that_do_not_fit():
  config = dataclasses.replace(
    gemma.preset("gemma-2-2b"),
    name="tiny",
    vocab_size=9,
    width=8,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    mlp_width=4,
  )
  params = gemma.init(config, jax.random.key(0))
  tokens = np.array([[3, 7, 1]])
  run = lambda cache: gemma.forward(config, params, tokens, cache=cache)
  make = functools.partial(kv_cache.empty, config)
  with pytest.raises(ValueError, match="room for 2 tokens and holds 0: 3 more"):
    run(make(1, 2, jnp.float32))
  with pytest.raises(ValueError, match="the cache lacks layer_1, layer_2"):
    run(make(1, 9, jnp.float32, layers=[0]))
  with pytest.raises(ValueError, match="a cache of 2 sequences for tokens"):
    run(make(2, 9, jnp.float32))
  with pytest.raises(ValueError, match="holds bfloat16, but the parameters"):
    run(make(1, 9, jnp.bfloat16))
  with pytest.raises(ValueError, match="for 0 sequences of 9 tokens"):
    make(0, 9, jnp.float32)
