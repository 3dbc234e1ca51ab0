import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gemmascope_jax import gemma, parallel
from gemmascope_jax.parallel import rules


@pytest.fixture(scope="module")
def mesh():
  return parallel.make_mesh({"data": 2, "model": 4})


@pytest.mark.parametrize(
  ("path", "shape", "expected"),
  [
    ("embedder/embedding", (64, 6), P("model", None)),
    ("layer_0/attn/q", (6, 8, 2), P(None, "model", None)),
    ("layer_11/attn/o", (8, 2, 6), P("model", None, None)),
    ("layer_3/mlp/gate", (6, 12), P(None, "model")),
    ("layer_3/mlp/down", (12, 6), P("model", None)),
    ("layer_3/attn/q_norm/scale", (8,), P(None)),
    ("final_norm/scale", (8,), P(None)),
  ],
)
def test_spec(mesh, path, shape, expected):
  assert rules.spec(path, shape, mesh) == expected


def test_what_cannot_be_split_stays_whole(mesh):
  one_head = rules.spec("layer_0/attn/k", (6, 1, 8), mesh)
  assert one_head == P(None, None, None)
  data_only = parallel.make_mesh({"data": 8})
  assert rules.spec("layer_0/mlp/up", (6, 8), data_only) == P(None, None)


def test_several_axes_on_one(mesh):
  both = ((r"w", P(("data", "model"))),)
  assert rules.spec("w", (16, 3), mesh, both) == P(("data", "model"), None)
  assert rules.spec("w", (12, 3), mesh, both) == P(None, None)


def test_unknown_parameter(mesh):
  with pytest.raises(ValueError, match="parameter layer_0/attn/bias: no part"):
    rules.spec("layer_0/attn/bias", (8,), mesh)


def test_rule_of_more_axes(mesh):
  with pytest.raises(ValueError, match=r"of shape \(64,\): its partition rule"):
    rules.spec("embedder/embedding", (64,), mesh)


@pytest.mark.parametrize("name", ["gemma-2-2b", "gemma-3-270m"])
def test_every_parameter_has_a_rule(mesh, name):
  config = gemma.preset(name)
  shapes = jax.eval_shape(lambda: gemma.init(config, jax.random.key(0)))
  found = parallel.shardings(shapes, mesh)
  local = jax.tree.map(
    lambda leaf, sharding: np.prod(sharding.shard_shape(leaf.shape)),
    shapes,
    found,
  )
  total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  # All large parameters are split by 4: only norms and a single key-value head
  # stay whole.
  assert sum(jax.tree.leaves(local)) < 0.27 * total


def test_shard(mesh):
  tree = {"mlp": {"up": jnp.arange(32.0).reshape(4, 8)}}
  put = parallel.shard({"layer_0": tree}, mesh)["layer_0"]["mlp"]["up"]
  np.testing.assert_array_equal(put, tree["mlp"]["up"])
  assert {s.data.shape for s in put.addressable_shards} == {(4, 2)}
