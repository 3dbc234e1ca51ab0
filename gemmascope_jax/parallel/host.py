"""Arrays that are in parts on many devices, a block at a time on the host."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def blocks(
  arrays: Mapping[str, jax.Array], size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Blocks of consecutive rows, so that no memory need hold all of them.

  Of several processes all must iterate, and all get every block.

  Args:
    arrays: float32 [M, ...], all of the same length.
    size: rows in a block; the last may be smaller.

  Yields:
    The same rows of each array.
  """
  rows = min(len(array) for array in arrays.values())
  for first in range(0, rows, size):
    count = min(size, rows - first)
    yield {k: _rows(v, first, count) for k, v in arrays.items()}


def _rows(array: jax.Array, first: int, count: int) -> np.ndarray:
  here = {
    shard.index[0].indices(len(array))[:2]: shard.data
    for shard in array.addressable_shards
  }
  if sum(last - start for start, last in here) < len(array):
    bits = _rows_of_all(array, array.sharding, first, count)
    return np.asarray(bits.addressable_data(0)).view(np.float32)
  found = np.empty((count, *array.shape[1:]), np.float32)
  for (start, last), part in here.items():
    low, high = max(start, first), min(last, first + count)
    if low < high:
      cut = _cut(part, low - start, high - low)
      found[low - first : high - first] = cut
  return found


@functools.partial(jax.jit, static_argnums=2)
def _cut(part: jax.Array, first: int, count: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(part, first, count)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _rows_of_all(
  array: jax.Array, sharding: NamedSharding, first: int, count: int
) -> jax.Array:
  """The rows' bits on every device: each gives what it has, zeros else."""
  axis = sharding.spec[0]

  def given(part, first):
    number = first + jnp.arange(count)
    number = number - jax.lax.axis_index(axis) * len(part)
    here = (number >= 0) & (number < len(part))
    found = part[jnp.clip(number, 0, len(part) - 1)]
    bits = jax.lax.bitcast_convert_type(found, jnp.int32)
    here = here.reshape(-1, *[1] * (part.ndim - 1))
    return jax.lax.psum(jnp.where(here, bits, 0), axis)

  return jax.shard_map(
    given, mesh=sharding.mesh, in_specs=(sharding.spec, P()), out_specs=P()
  )(array, first)
