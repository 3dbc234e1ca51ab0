"""What a pass takes, against formulas, and the pass itself against one device."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from gemmascope_jax import gemma, parallel
from gemmascope_jax.data.stores import footprint, forward
from gemmascope_jax.gemma import costs
from gemmascope_jax.gemma.weights import layout
from gemmascope_jax.parallel import rules

SCRIPT = pathlib.Path(__file__).parent / "compile_27b.py"
CONFIG = gemma.GemmaConfig(
  name="gemma-2-tiny",
  vocab_size=256,
  width=32,
  num_layers=4,
  num_heads=8,
  num_kv_heads=4,
  head_dim=8,
  mlp_width=64,
  query_pre_attn_scalar=8,
  layer_pattern=("local", "global"),
  window=5,
  attn_softcap=5.0,
  final_softcap=3.0,
  context=64,
)
# Nothing but the width divides: 3 query heads, 1 key head, 35 hidden units.
ODD = dataclasses.replace(
  CONFIG, num_heads=3, num_kv_heads=1, mlp_width=35, vocab_size=255
)
SITES = ("res.1", "att.2", "mlp.2", "mlp_in.3")


TOKENS = np.random.default_rng(0).integers(0, 255, (8, 16), np.int32)
MASK = np.arange(16) < np.arange(9, 17)[:, None]


def _params(config):
  """Numbers for every parameter, norms' scales included."""
  rng = np.random.default_rng(1)
  shapes = layout.shapes(config, num_layers=config.num_layers, dtype="float32")
  return jax.tree.map(
    lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes
  )


def _run(config, params, put, mesh):
  return forward.taps(
    params,
    put(TOKENS),
    put(MASK),
    config=config,
    sites=SITES,
    dtype="float32",
    mesh=mesh,
  )


@functools.cache
def _on_one_device(config):
  found = _run(config, _params(config), lambda x: x, None)
  return {site: np.asarray(acts) for site, acts in found.items()}


@pytest.mark.parametrize(
  "config, fully_sharded, data, model",
  [
    (CONFIG, False, 2, 4),
    (CONFIG, True, 2, 4),
    (CONFIG, True, 8, 1),
    (ODD, True, 2, 4),
  ],
)
def test_activations_on_a_mesh(config, fully_sharded, data, model):
  mesh = parallel.make_mesh({"data": data, "model": model})
  params, expected = _params(config), _on_one_device(config)
  by_sequence = forward.by_sequence(mesh)
  split = parallel.shard(params, mesh, rules.for_lm(fully_sharded))
  found = _run(config, split, lambda x: jax.device_put(x, by_sequence), mesh)
  for site in SITES:
    for shard in found[site].addressable_shards:
      assert shard.data.shape[0] == 8 // data
    np.testing.assert_allclose(
      np.asarray(found[site])[MASK],
      expected[site][MASK],
      rtol=1e-5,
      atol=1e-5 * float(np.abs(expected[site]).max()),
    )


def test_losses_of_a_model_in_parts():
  mesh = parallel.make_mesh({"data": 2, "model": 4})
  params = _params(CONFIG)
  tokens = np.random.default_rng(0).integers(0, 256, (4, 16), np.int32)
  losses = jax.jit(lambda p, t: gemma.next_token_losses(CONFIG, p, t))
  split = parallel.shard(params, mesh, rules.for_lm(True))
  np.testing.assert_allclose(
    losses(split, tokens), losses(params, tokens), rtol=1e-5, atol=1e-5
  )


def _measure(config=CONFIG, **changes):
  mesh = parallel.make_mesh(changes.pop("axes", {"data": 2, "model": 4}))
  arguments = {"batch": 8, "window": 16, "compute_dtype": "float32"}
  arguments |= {"dtype": "float32", "mesh": mesh} | changes
  return footprint.measure(config, ("res.3",), **arguments)


def test_weights_outputs_and_operations_by_formula():
  split, fully = _measure(), _measure(fully_sharded=True)
  # Norms are whole on each device; so are a device's tokens and mask.
  norms = 4 * CONFIG.num_layers * CONFIG.width
  matrices = costs.parameters(CONFIG) - norms - CONFIG.width
  given = 4 * 16 * 5
  assert split.weights == 4 * (matrices // 4 + norms) + given
  assert fully.weights == 4 * (matrices // 8 + norms) + given
  assert split.outputs == fully.outputs == 4 * 16 * CONFIG.width * 4
  assert split.peak == split.weights + split.temporaries + split.outputs
  assert split.device_tokens == 16
  most = dataclasses.replace(split, held=3)
  assert most.peak == split.peak + 2 * split.outputs


def test_what_stays_whole_is_said():
  found = _measure(ODD, fully_sharded=True)
  assert found.kept_whole == {
    "embedder/embedding": "255 does not divide by 4 ('model')",
    "attn/q": "3 does not divide by 4 ('model')",
    "attn/k": "1 does not divide by 4 ('model')",
    "attn/v": "1 does not divide by 4 ('model')",
    "attn/o": "3 does not divide by 4 ('model')",
    "mlp/gate": "35 does not divide by 4 ('model')",
    "mlp/up": "35 does not divide by 4 ('model')",
    "mlp/down": "35 does not divide by 4 ('model')",
  }
  assert "not split, but whole on each device: embedder" in found.describe()
  assert _measure().kept_whole == {}


def test_rate_is_that_of_the_nearer_limit():
  found = footprint.Footprint(
    "m", {"data": 2, "model": 2}, 8, 10, 1, 1, 1, 1, 400.0, 100.0, {}
  )
  assert found.device_tokens == 20
  assert found.tokens_per_second(40.0, 100.0) == 2.0
  assert found.tokens_per_second(4000.0, 10.0) == 2.0


def test_a_batch_that_the_mesh_cannot_split():
  with pytest.raises(ValueError, match="batch 7: the mesh splits it 2 ways"):
    _measure(batch=7)


def test_shapes_are_those_that_are_read():
  made = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  found = layout.shapes(CONFIG, num_layers=4, dtype="float32")
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
    lambda x: (x.shape, x.dtype), made
  )


@pytest.mark.slow
def test_gemma_2_27b_on_16_devices():
  done = subprocess.run(
    [sys.executable, SCRIPT], capture_output=True, text=True, timeout=240
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  config = gemma.preset("gemma-2-27b")
  # float32 parameters, of which each device has a sixteenth.
  weights = 4 * costs.parameters(config) / 16
  assert found["weights"] == pytest.approx(weights, rel=0.001)
  # 4 sequences of 1024 on 4 devices. Most is held in an MLP: a quarter of its
  # gate and of its up-projection, one's result, the stream and its norm.
  rows, hidden = 4 * 1024, config.mlp_width // 4
  by_hand = 2 * config.width * hidden + rows * hidden + 2 * rows * config.width
  assert found["temporaries"] == pytest.approx(4 * by_hand, rel=0.25)
  assert found["outputs"] == 4 * rows * config.width
  assert found["peak"] < 8 * 2**30
  assert found["flops"] == pytest.approx(
    rows / 4 * costs.flops_of_token(config, 46, 1024), rel=0.02
  )
