"""Raw reading of Orbax checkpoints."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from gemmascope_jax import artifacts, checkpoints, parallel


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


def _state():
  rng = np.random.default_rng(0)
  return {
    "w": jnp.asarray(rng.normal(size=(64, 96)), jnp.float32),
    "half": jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16),
    "on": jnp.asarray(rng.random(12) < 0.5),
    "step": jnp.int32(7),
  }


def test_any_changed_element_changes_its_sum():
  state = _state()
  sums = np.asarray(checkpoints._sums(state))
  for index, (name, leaf) in enumerate(sorted(state.items())):
    array = np.array(leaf)
    flat = array.reshape(-1)
    for place in {0, flat.size // 2, flat.size - 1}:
      bits = flat[place : place + 1].view(np.uint8)
      for byte in range(len(bits)):
        changed = array.copy()
        changed.reshape(-1)[place : place + 1].view(np.uint8)[byte] ^= 1
        found = checkpoints._sums(state | {name: jnp.asarray(changed)})
        assert (np.asarray(found) != sums).tolist() == [
          i == index for i in range(len(sums))
        ]
    if flat.size > 1:  # and where elements changed places
      moved = jnp.asarray(np.roll(flat, 1).reshape(array.shape))
      found = np.asarray(checkpoints._sums(state | {name: moved}))
      assert found[index] != sums[index]


def test_sums_do_not_depend_on_the_mesh():
  state = _state()
  mesh = parallel.make_mesh({"data": 2, "model": 4})
  split = state | {
    "w": jax.device_put(state["w"], NamedSharding(mesh, P("model", "data")))
  }
  np.testing.assert_array_equal(
    checkpoints._sums(state), jax.jit(checkpoints._sums)(split)
  )


def test_a_flipped_bit_is_noticed(tmp_path):
  state = _state()
  with checkpoints.Run(tmp_path / "run", keep=2) as run:
    run.save(3, state)
  with checkpoints.Run(tmp_path / "run", keep=2) as run:
    found = run.restore(3, jax.eval_shape(lambda: state))
  jax.tree.map(np.testing.assert_array_equal, found, state)
  files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
  path = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  assert len(content) > 8_000
  content[len(content) // 2] ^= 16
  path.write_bytes(content)
  with checkpoints.Run(tmp_path / "run", keep=2) as run:
    with pytest.raises(ValueError, match="delete that folder and run the same"):
      run.restore(3, jax.eval_shape(lambda: state))


def test_a_full_disk_is_said_in_words(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: Failed writing")

  with checkpoints.Run(tmp_path / "run", keep=2) as run:
    monkeypatch.setattr(run._checkpointer, "save_checkpointables_async", full)
    with pytest.raises(artifacts.OutOfDiskError, match="free space"):
      run.save(3, _state())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs resource limits")
def test_a_save_that_found_no_room_is_noticed_before_the_next(tmp_path):
  """A limit on the size of files, which TensorStore meets as a full disk."""
  script = f"""
import resource, signal, sys, time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import jax.numpy as jnp, numpy as np
from gemmascope_jax import artifacts, checkpoints
x = jnp.asarray(np.random.default_rng(0).random(300_000), jnp.float32)
try:
  with checkpoints.Run({str(tmp_path / "run")!r}, keep=2) as run:
    run.check()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    run.save(3, {{"x": x}})
    for _ in range(200):
      run.check()
      time.sleep(0.1)
except artifacts.OutOfDiskError as error:
  print("noticed:", error)
"""
  found = subprocess.run(
    [sys.executable, "-c", script],
    capture_output=True,
    text=True,
    timeout=100,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  assert "noticed: [Errno 28] out of disk" in found.stdout, found.stderr[-3000:]
  assert found.stderr.count("Traceback") == 0, found.stderr[-3000:]
