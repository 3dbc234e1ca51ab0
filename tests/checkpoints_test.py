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


def test_checkpoints_restore_onto_another_mesh(tmp_path):
  mesh = parallel.make_mesh({"model": 8})
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
  value = jax.device_put(np.arange(16.0, dtype=np.float32), split)
  with checkpoints.Run(tmp_path / "run", keep=1) as run:
    assert run.latest is None
    run.save(3, {"x": value})
  one = {"x": jax.device_put(np.zeros(16, np.float32), jax.devices()[0])}
  with checkpoints.Run(tmp_path / "run", keep=1) as run:
    found = run.restore(3, one)["x"]
  np.testing.assert_array_equal(found, np.arange(16.0))
  assert found.sharding.device_set == {jax.devices()[0]}


def test_every_save_counts_and_the_latest_and_the_best_stay(tmp_path):
  values = [3.0, 1.0, 5.0, 4.0, 2.0]
  with checkpoints.Run(tmp_path / "run", keep=2, keep_best=True) as run:
    for step, value in enumerate(values):
      # Faster than they are written.
      run.save(step, {"x": jnp.full(100_000, value)}, value)
      run.save(step, {"x": jnp.zeros(100_000)}, value)  # is there already
  kept = sorted(int(path.name) for path in (tmp_path / "run").glob("[0-9]*"))
  assert kept == [1, 3, 4]
  like = {"x": jax.ShapeDtypeStruct((100_000,), jnp.float32)}
  with checkpoints.Run(tmp_path / "run", keep=2, keep_best=True) as run:
    assert run.latest == 4
    assert float(run.restore(1, like)["x"][0]) == 1.0
    run.save(5, {"x": jnp.zeros(100_000)}, 0.5)
  kept = sorted(int(path.name) for path in (tmp_path / "run").glob("[0-9]*"))
  assert kept == [4, 5]
