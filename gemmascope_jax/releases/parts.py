"""A finished SAE, a block of latents at a time, to be written.

So an SAE that lies on a mesh, in parts, is written without any memory holding
all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from gemmascope_jax.releases import stored
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

LATENTS_AT_A_TIME = 2**14
# Which axis of which parameter is the latents'.
AXES = {"w_enc": 1, "b_enc": 0, "w_dec": 0, "threshold": 0}


def of(sae: SAE, size: int = LATENTS_AT_A_TIME) -> Iterator[Params]:
  """Blocks of consecutive latents; b_dec and w_skip are whole in each.

  Args:
    sae: NumPy arrays, or JAX's on devices of this process.
    size: latents in a block; the last may be smaller.

  Yields:
    NumPy arrays.

  Raises:
    ValueError: arrays of which other processes hold parts.
  """
  fields = {k: v for k, v in vars(sae.params).items() if v is not None}
  for field, value in fields.items():
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
      raise ValueError(
        f"{field} lies on devices of several processes: load the SAE in one"
        " process to write it"
      )
  whole = {k: np.asarray(v) for k, v in fields.items() if k not in AXES}
  for first in range(0, sae.width, size):
    last = min(first + size, sae.width)
    cut = {k: _cut(fields[k], axis, first, last) for k, axis in AXES.items()}
    yield Params(**cut, **whole)


def _cut(value, axis: int, first: int, last: int) -> np.ndarray:
  index = (slice(None),) * axis
  if not isinstance(value, jax.Array):
    return np.asarray(value)[(*index, slice(first, last))]
  shape = list(value.shape)
  shape[axis] = last - first
  found = np.empty(shape, np.float32)
  for shard in value.addressable_shards:
    start, stop, _ = shard.index[axis].indices(value.shape[axis])
    low, high = max(start, first), min(stop, last)
    if low < high:
      found[(*index, slice(low - first, high - first))] = np.asarray(
        shard.data[(*index, slice(low - start, high - start))]
      )
  return found


def checked(
  blocks: Iterable[Params], config: SAEConfig, where
) -> Iterator[dict[str, np.ndarray]]:
  """Blocks by field, float32, once they are found to be an SAE's.

  Raises:
    ValueError: shapes that do not fit together, values that are not finite,
      negative thresholds.
  """
  for block in blocks:
    arrays = {
      field: np.asarray(value, np.float32)
      for field, value in vars(block).items()
      if value is not None
    }
    stored.check_shapes({k: v.shape for k, v in arrays.items()}, config, where)
    for field, value in arrays.items():
      stored.check_values(field, value, where)
    yield arrays
