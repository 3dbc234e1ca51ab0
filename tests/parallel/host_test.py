import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gemmascope_jax import parallel
from gemmascope_jax.parallel import host


def _values():
  values = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
  values[3] = -0.0
  return values


def _put(values, axes, spec):
  return jax.device_put(values, NamedSharding(parallel.make_mesh(axes), spec))


@pytest.mark.parametrize(
  ("axes", "spec"),
  [
    ({"model": 8}, P("model", None)),
    ({"data": 2, "model": 4}, P("model", None)),
    ({"data": 2, "model": 4}, P()),
  ],
)
@pytest.mark.parametrize("size", [4, 7, 24, 100])
def test_blocks_are_the_rows_in_order(axes, spec, size):
  values = _values()
  arrays = {
    "w": _put(values, axes, spec),
    "b": _put(values[:, 0].copy(), axes, P(*spec[:1])),
  }
  found = list(parallel.blocks(arrays, size))
  assert [len(block["w"]) for block in found[:-1]] == [size] * (len(found) - 1)
  together = np.concatenate([block["w"] for block in found])
  assert together.tobytes() == values.tobytes()
  np.testing.assert_array_equal(
    np.concatenate([block["b"] for block in found]), values[:, 0]
  )


def test_blocks_of_one_device():
  found = parallel.blocks({"w": jnp.asarray(_values())}, 10)
  assert [len(block["w"]) for block in found] == [10, 10, 4]


@pytest.mark.parametrize("axes", [{"model": 8}, {"data": 2, "model": 4}])
@pytest.mark.parametrize(("first", "count"), [(0, 24), (2, 9), (23, 1)])
def test_rows_that_other_processes_hold(axes, first, count):
  """What processes do who have not all rows, run here by one that has."""
  values = _values()
  array = _put(values, axes, P("model", None))
  bits = host._rows_of_all(array, array.sharding, first, count)
  assert bits.sharding.is_fully_replicated
  found = np.asarray(bits.addressable_data(0)).view(np.float32)
  assert found.tobytes() == values[first : first + count].tobytes()
