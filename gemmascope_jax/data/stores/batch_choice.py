"""How many sequences go through the model at once: as many as fit.

Memory is asked of the compiler, not guessed: `footprint.measure` at a few
sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from gemmascope_jax.data.stores.footprint import Footprint

# Left for the allocator's gaps and what else runs.
SHARE = 0.9
# Of one device in one pass: more makes no large product faster.
_MOST_TOKENS = 1 << 15
_GIB = 2**30


class TooLargeError(ValueError):
  """Not even one sequence for each device fits."""


def memory_limit(mesh: Mesh | None, gib: float = 0.0) -> int:
  """Bytes of a device that may be used.

  Args:
    mesh: the devices; None: the default one.
    gib: of each, said by hand; 0: they are asked.

  Raises:
    ValueError: they don't know.
  """
  if gib:
    return int(gib * _GIB)
  devices = jax.local_devices() if mesh is None else mesh.local_devices
  device = devices[0]
  found = (device.memory_stats() or {}).get("bytes_limit")
  if not found:
    raise ValueError(
      f"harvest.batch is 0, to be chosen from memory, but device {device} does"
      " not say how much it has: set mesh.memory_gib, or harvest.batch"
    )
  return found


def choose(
  measure: Callable[[int, int], Footprint],
  *,
  ways: int,
  window: int,
  limit: int,
) -> tuple[Footprint, str]:
  """The largest batch that fits: `ways` times a power of two.

  Args:
    measure: from (batch, window) to what it takes.
    ways: that the mesh splits a batch.
    window: tokens in a sequence.
    limit: bytes of a device.

  Returns:
    What it takes, and a sentence that says what was chosen and why.

  Raises:
    TooLargeError: not even one sequence for each way fits; says what to do.
  """
  room = SHARE * limit
  found = measure(ways, window)
  if found.peak > room:
    raise TooLargeError(_advice(measure, found, ways, limit))
  while 2 * found.batch * window <= _MOST_TOKENS * ways:
    more = measure(2 * found.batch, window)
    if more.peak > room:
      return found, _sentence(
        found, limit, f"{more.batch} would take {more.peak / _GIB:.2f} GiB"
      )
    found = more
  return found, _sentence(
    found, limit, f"more than {_MOST_TOKENS:,} tokens a device gain nothing"
  )


def _sentence(found: Footprint, limit: int, why: str) -> str:
  return (
    f"harvest.batch: {found.batch} sequences of {found.window} tokens, which"
    f" take {found.peak / _GIB:.2f} GiB of a device's {limit / _GIB:.2f} GiB, of"
    f" which {SHARE:.0%} may be used; {why}\n{found.describe()}"
  )


def _advice(measure, found: Footprint, ways: int, limit: int) -> str:
  """Why it does not fit, and what would."""
  room, gib = SHARE * limit, lambda size: f"{size / _GIB:.2f} GiB"
  said = (
    f"{found.model} does not fit: {found.describe()}; a device has"
    f" {gib(limit)}, of which {SHARE:.0%} may be used. "
  )
  if found.weights > room:
    return said + (
      "The weights alone are too large: set mesh.model or mesh.data higher"
      " (with mesh.fully_sharded both divide them), lm.dtype to bfloat16, or"
      " harvest sites of earlier layers"
    )
  shorter = found.window // 2
  while shorter >= 128:
    if measure(ways, shorter).peak <= room:
      return said + (
        f"Sequences of {shorter} tokens would fit (data.window={shorter}); or"
        " set mesh.model higher, or lm.dtype to bfloat16"
      )
    shorter //= 2
  return said + (
    "Shorter sequences do not help: set mesh.model higher, or lm.dtype to"
    " bfloat16"
  )
