"""Parameters that know their mesh: the same numbers, and the work divided."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma, parallel
from gemmascope_jax.gemma import divergence, on_mesh
from gemmascope_jax.parallel import rules

CONFIG = dataclasses.replace(
  gemma.preset("gemma-2-9b"),
  name="tiny",
  vocab_size=256,
  width=64,
  num_layers=2,
  num_heads=8,
  num_kv_heads=4,
  head_dim=8,
  mlp_width=128,
  window=5,
)
# 3 query heads, 1 key head and 33 hidden units divide by nothing.
ODD = dataclasses.replace(
  CONFIG, num_heads=3, num_kv_heads=1, mlp_width=33, vocab_size=255
)
TOKENS = np.random.default_rng(0).integers(0, 255, (8, 16), np.int32)


def _params(config):
  shapes = jax.eval_shape(lambda: gemma.init(config, jax.random.key(0)))
  rng = np.random.default_rng(1)
  draw = lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32)
  return jax.tree.map(draw, shapes)


def _split(config, axes, fully_sharded):
  mesh = parallel.make_mesh(axes)
  table = rules.for_lm(fully_sharded)
  return on_mesh.Params(parallel.shard(_params(config), mesh, table), mesh)


def _everything(config, params, tokens):
  """What evaluation runs: sites, losses, logits, KL, on the whole model."""
  mask = (
    jnp.arange(tokens.shape[1])[None] < jnp.arange(9, 9 + len(tokens))[:, None]
  )
  out = gemma.forward(
    config, params, tokens, taps=("res.0", "att.1"), mask=mask
  )
  edited = (out.residual + jnp.roll(out.residual, 1, axis=-1))[None]
  own, targets = out.residual[:, :-1], tokens[:, 1:]
  found = divergence.divergence(config, params, own, edited[:, :, :-1], targets)
  restarted = gemma.next_token_losses(
    config, params, tokens, start=(1, out.acts["res.0"])
  )
  centred = gemma.centred_logits(config, params, own, targets)
  real = mask[:, :, None]
  acts = {k: jnp.where(real, v, 0) for k, v in out.acts.items()}
  return acts, out.logits, found, restarted, centred


@pytest.mark.parametrize(
  "config, axes, fully_sharded, sequences",
  [
    (CONFIG, {"data": 2, "model": 2}, False, 4),
    (CONFIG, {"data": 2, "model": 4}, True, 4),
    (ODD, {"data": 4}, True, 3),  # can't be split: each device has all
  ],
)
def test_the_same_as_on_one_device(config, axes, fully_sharded, sequences):
  run = jax.jit(_everything, static_argnums=0)
  expected = run(config, _params(config), TOKENS[:sequences])
  found = run(config, _split(config, axes, fully_sharded), TOKENS[:sequences])
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    scale = float(np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


def test_each_device_does_its_share_of_the_losses():
  run = jax.jit(lambda p, t: gemma.next_token_losses(CONFIG, p, t))
  flops = lambda *given: run.lower(*given).compile().cost_analysis()["flops"]
  alone = flops(_params(CONFIG), TOKENS)
  params = _split(CONFIG, {"data": 2, "model": 4}, False)
  assert flops(params, TOKENS) < 1.2 * alone / 8
  # The parameters' places alone don't divide it: tokens lie on no device.
  assert flops(dict(params), TOKENS) > 1.5 * alone / 8


def test_gradients():
  slope = jax.jit(
    jax.grad(
      lambda stream, params: gemma.next_token_losses(
        CONFIG, params, TOKENS, start=(1, stream)
      ).mean()
    )
  )
  stream = np.random.default_rng(2).normal(size=(8, 16, 64)).astype(np.float32)
  params = _split(CONFIG, {"data": 2, "model": 2}, True)
  found, expected = slope(stream, params), slope(stream, _params(CONFIG))
  np.testing.assert_allclose(
    found, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max())
  )


def test_it_is_a_dict_everywhere():
  params = _split(CONFIG, {"data": 2, "model": 4}, True)
  plain = dict(params)
  assert params == plain and {**params} == plain
  paths = lambda tree: [
    k for k, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
  ]
  assert paths(params) == paths(plain)
  again = jax.tree.map(lambda x: x, params)
  assert isinstance(again, on_mesh.Params) and again.mesh == params.mesh
  changed = params | {"final_norm": {"scale": jnp.ones(64)}}
  assert isinstance(changed, on_mesh.Params) and changed.mesh == params.mesh
  assert changed["final_norm"]["scale"][0] == 1


def test_without_a_mesh_nothing_changes():
  params = _params(CONFIG)
  assert on_mesh.together(params, table=True) is params
  assert on_mesh.by_sequence(params, TOKENS) is TOKENS
  assert on_mesh.embedding(params) is params["embedder"]["embedding"]
