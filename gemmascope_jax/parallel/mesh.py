"""Meshes of devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

DATA = "data"
MODEL = "model"


def make_mesh(
  axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh over the first devices, whose shardings the compiler completes.

  Args:
    axes: size of each axis, in order, such as {"data": 2, "model": 4}. The
      partition rules know the axes "data" (sequences, batch rows) and "model"
      (heads, hidden units, words).
    devices: to take them from; by default all of this program.

  Returns:
    The mesh, all axes of type `AxisType.Auto` on every version of JAX.

  Raises:
    ValueError: a size that is not positive, or too few devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if not axes or any(size < 1 for size in axes.values()):
    raise ValueError(
      f"mesh axes {dict(axes)}: expected at least one, each of size >= 1"
    )
  size = math.prod(axes.values())
  if size > len(devices):
    raise ValueError(
      f"mesh axes {dict(axes)} need {size} devices, but there are"
      f" {len(devices)}"
    )
  # Positional, with axis types: the parameters' names and the default type
  # differ between the versions of JAX that are supported.
  return jax.make_mesh(
    tuple(axes.values()),
    tuple(axes),
    (AxisType.Auto,) * len(axes),
    devices=devices[:size],
  )
