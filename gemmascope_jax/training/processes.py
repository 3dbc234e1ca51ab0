"""Several processes that train one run together."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh


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


def is_first() -> bool:
  """Whether this is the process that writes what is written once."""
  return jax.process_index() == 0


def agreed(flags: Sequence[bool]) -> list[bool]:
  """The first process's flags, in every process; all must ask."""
  if jax.process_count() == 1:
    return list(flags)
  found = multihost_utils.broadcast_one_to_all(np.array(flags))
  return [bool(flag) for flag in found]


def wait(name: str) -> None:
  """Until every process is here; `name` says where."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
