"""Safetensors files, read and written in parts."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.releases import parts
from gemmascope_jax.releases.stored import Stored
from gemmascope_jax.sae.sae import SAE

_FLOATS = ("F64", "F32", "F16", "BF16")
_ALIGNED = 8  # where the numbers start, from the file's start


class Member(NamedTuple):
  """A float32 array of a file.

  Attributes:
    name: its key.
    shape: its axes.
    axis: along which its parts come; None: it comes whole, once.
  """

  name: str
  shape: tuple[int, ...]
  axis: int | None = None


def keys(path: str | os.PathLike) -> tuple[str, ...]:
  """The names of a file's arrays."""
  with _open(path) as file:
    return tuple(file.keys())


def read(path: str | os.PathLike) -> dict[str, Stored]:
  """The arrays of a file; what is not looked at is not read.

  Raises:
    ValueError: truncated or not a safetensors file; an array that is not of
      floating-point numbers.
  """
  file = _open(path)

  def stored(name: str) -> Stored:
    part = file.get_slice(name)
    kind = part.get_dtype()
    if kind not in _FLOATS:
      raise ValueError(
        f"{path}: {name} is of type {kind}; expected one of {', '.join(_FLOATS)}"
      )
    shape = tuple(part.get_shape())
    if not shape:
      return Stored(name, shape, lambda index: file.get_tensor(name))
    return Stored(name, shape, lambda index: part[index])

  return {name: stored(name) for name in file.keys()}


def _open(path: str | os.PathLike):
  import safetensors

  if not os.path.isfile(path):
    raise FileNotFoundError(f"no file {path}")
  try:
    return safetensors.safe_open(os.fspath(path), framework="numpy")
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} is truncated or not a safetensors file ({error}): fetch or"
      " write it again"
    ) from error


@contextlib.contextmanager
def writing(
  file: BinaryIO, members: Sequence[Member]
) -> Iterator[Callable[[str, np.ndarray], None]]:
  """Writes a file.

  Args:
    file: empty, with a name.
    members: all of its arrays.

  Yields:
    (name, part): the next numbers of that array, along its axis.

  Raises:
    ValueError: at the end, an array that has not got all of its numbers.
  """
  header, end = {}, 0
  for member in members:
    start, end = end, end + 4 * math.prod(member.shape)
    header[member.name] = {
      "dtype": "F32",
      "shape": list(member.shape),
      "data_offsets": [start, end],
    }
  content = json.dumps(header).encode()
  content += b" " * (-len(content) % _ALIGNED)
  first = 8 + len(content)
  file.write(len(content).to_bytes(8, "little") + content)
  file.truncate(first + end)
  file.flush()
  maps, place = {}, dict.fromkeys(header, 0)
  for member in members:
    maps[member.name] = np.memmap(
      pathlib.Path(file.name),
      "<f4",
      "r+",
      offset=first + header[member.name]["data_offsets"][0],
      shape=member.shape,
    )
  axes = {member.name: member.axis or 0 for member in members}

  def append(name: str, part: np.ndarray) -> None:
    axis, start = axes[name], place[name]
    stop = start + part.shape[axis]
    if stop > maps[name].shape[axis]:
      raise _unfilled(name, maps[name].shape, stop, axis)
    maps[name][(slice(None),) * axis + (slice(start, stop),)] = part
    place[name] = stop

  yield append
  for name, value in maps.items():
    if place[name] != value.shape[axes[name]]:
      raise _unfilled(name, value.shape, place[name], axes[name])
    value.flush()


def _unfilled(name, shape, given, axis) -> ValueError:
  return ValueError(
    f"array {name} of shape {shape} was given {given} numbers along axis"
    f" {axis}, expected {shape[axis]}"
  )


def write_sae(
  sae: SAE,
  file: str | os.PathLike,
  keys: Mapping[str, str],
  turned: Sequence[str] = (),
) -> None:
  """Writes an SAE's parameters, a block of latents at a time.

  Args:
    sae: with NumPy arrays, or on a mesh.
    file: its path.
    keys: what the file calls the fields of `sae.Params`; others are left out.
    turned: the fields whose transposes the file holds.

  Raises:
    ValueError: parameters that are not an SAE's, see `parts.checked`.
  """
  axes = {
    field: 1 - axis if field in turned else axis
    for field, axis in parts.AXES.items()
  }
  blocks = (
    {k: v.T if k in turned else v for k, v in block.items() if k in keys}
    for block in parts.checked(parts.of(sae), sae.config, file)
  )
  first = next(blocks)
  members = []
  for field, value in first.items():
    shape, axis = list(value.shape), axes.get(field)
    if axis is not None:
      shape[axis] = sae.width
    members.append(Member(keys[field], tuple(shape), axis))
  with (
    artifacts.atomic_write(file) as out,
    writing(out, members) as append,
  ):
    for field, value in first.items():
      append(keys[field], value)
    for block in blocks:
      for field in block:
        if field in axes:
          append(keys[field], block[field])
