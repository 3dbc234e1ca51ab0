"""Raw reading of Orbax checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from gemmascope_jax import checkpoints, parallel


@pytest.fixture
def saved(tmp_path):
  """Two arrays, of which one was sharded over all devices when saved."""
  mesh = parallel.make_mesh({"data": 8})
  array = jnp.arange(32, dtype=jnp.bfloat16).reshape(8, 4)
  tree = {
    "a/b": {"w": jax.device_put(array, NamedSharding(mesh, P("data")))},
    "c": {"d": jnp.ones((3,)), "e": jnp.zeros((2,))},
  }
  ocp.save(tmp_path / "saved", tree)
  return tmp_path / "saved", tree


def test_arrays_come_back_as_numpy(saved):
  path, tree = saved
  assert checkpoints.is_checkpoint(path)
  raw = checkpoints.load_raw_tree(path)
  assert jax.tree.structure(raw) == jax.tree.structure(tree)
  for got, expected in zip(
    jax.tree.leaves(raw), jax.tree.leaves(tree), strict=True
  ):
    assert isinstance(got, np.ndarray) and got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_shapes_without_reading(saved):
  path, _ = saved
  assert checkpoints.tree_shapes(path) == {
    "a/b": {"w": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)},
    "c": {
      "d": jax.ShapeDtypeStruct((3,), jnp.float32),
      "e": jax.ShapeDtypeStruct((2,), jnp.float32),
    },
  }


def test_only_what_is_kept_is_read(saved):
  path, tree = saved
  raw = checkpoints.load_raw_tree(path, keep=lambda name: name == "c/d")
  assert list(raw) == ["c"] and list(raw["c"]) == ["d"]
  np.testing.assert_array_equal(raw["c"]["d"], tree["c"]["d"])


def test_no_checkpoint(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such folder"):
    checkpoints.load_raw_tree(tmp_path / "nowhere")
  (tmp_path / "x").write_text("")
  assert not checkpoints.is_checkpoint(tmp_path)
  with pytest.raises(ValueError, match="no whole Orbax checkpoint"):
    checkpoints.tree_shapes(tmp_path)


def test_a_checkpoint_without_its_data(tmp_path):
  # Large and random: what is small is kept beside the names.
  array = jax.random.normal(jax.random.key(0), (100, 50))
  path = tmp_path / "saved"
  ocp.save(path, {"a": array})
  for file in path.glob("*/ocdbt*/d/*"):
    file.unlink()
  with pytest.raises(ValueError, match="missing or cut short"):
    checkpoints.load_raw_tree(path)
