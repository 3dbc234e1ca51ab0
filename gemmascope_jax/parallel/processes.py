"""Several processes that are one program: who does what, and when all are here.

Of one process alone, everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gemmascope_jax import checkpoints

_T = TypeVar("_T")
_WAIT_S = 30 * 24 * 3600  # one that died is noticed at once, by its heartbeat


def check(mesh: Mesh | None) -> None:
  """Refuses devices that leave a process out.

  Raises:
    ValueError: says how many devices there are.
  """
  count = jax.process_count()
  held = set() if mesh is None else {d.process_index for d in mesh.devices.flat}
  if count > 1 and len(held) < count:
    shape = "no mesh" if mesh is None else f"the mesh {dict(mesh.shape)}"
    raise ValueError(
      f"{count} processes train together, but {shape} has devices of"
      f" {len(held)}: set mesh.data and mesh.model so that their product is"
      f" {jax.device_count()}, the number of all devices"
    )


def are_several() -> bool:
  """Whether others were joined; touches no device."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this is the process that writes what is written once."""
  return jax.process_index() == 0


def agreed(flags: Sequence[bool]) -> list[bool]:
  """The first process's flags, in every process; all must ask."""
  if jax.process_count() == 1:
    return list(flags)
  found = multihost_utils.broadcast_one_to_all(np.array(flags))
  return [bool(flag) for flag in found]


def meet() -> None:
  """Connects the devices of all processes, when all are about to start.

  The CPU's collectives give up if one process is half a minute late for the
  first of them, and wait half an hour in later ones.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("start")


def wait(name: str) -> None:
  """Until every process is here, however long that takes; `name` says where."""
  if jax.process_count() > 1:
    checkpoints.barrier(name, _WAIT_S)


def by_the_first(call: Callable[[], _T]) -> _T | None:
  """Calls it in the first process, and the others wait until that is over.

  Returns:
    What it returned; None in the others, also if it raised.
  """
  try:
    return call() if is_first() else None
  finally:
    wait("done by the first process")


def turns(count: int) -> list[int]:
  """Which of `count` pieces of work this process does: every n-th."""
  return list(range(jax.process_index(), count, jax.process_count()))
