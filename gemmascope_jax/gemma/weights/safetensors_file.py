"""Safetensors files, of which only the bytes that are asked for are read.

A tensor split over many devices is read in as many pieces, each by the process
that holds the device. Reads are calls to the system for a range of the file,
and not a mapping of it: so they can be counted, and a network file system is
asked for what is needed and not for what may come next.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from gemmascope_jax.gemma.weights.errors import WeightsFormatError

_DTYPES = {
  "BOOL": np.bool_,
  "U8": np.uint8,
  "U16": np.uint16,
  "U32": np.uint32,
  "U64": np.uint64,
  "I8": np.int8,
  "I16": np.int16,
  "I32": np.int32,
  "I64": np.int64,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F32": np.float32,
  "F64": np.float64,
}


class File:
  """An open file.

  Attributes:
    path: of it.
    bytes_read: of tensors, so far; the header is not counted.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the header.

    Raises:
      WeightsFormatError: the file is damaged or cut short.
    """
    import safetensors

    self.path, self.bytes_read = pathlib.Path(path), 0
    try:
      # Checks that tensors lie side by side up to the end of the file.
      safetensors.safe_open(os.fspath(path), framework="numpy")
    except safetensors.SafetensorError as error:
      raise WeightsFormatError(
        f"{path} is cut short or damaged ({error}); download it again"
      ) from error
    self._file = open(path, "rb", buffering=0)
    size = int.from_bytes(os.pread(self._file.fileno(), 8, 0), "little")
    header = json.loads(os.pread(self._file.fileno(), size, 8))
    header.pop("__metadata__", None)
    self._tensors, self._start = header, 8 + size

  def names(self) -> list[str]:
    """Of the tensors."""
    return list(self._tensors)

  def tensor(self, name: str) -> Tensor:
    """One of them, as `layout.Tensor`.

    Raises:
      WeightsFormatError: its type is unknown.
    """
    return Tensor(self, name, self._tensors[name], self._start)

  def read(self, offset: int, into: memoryview) -> None:
    """Fills `into` with the bytes from `offset` on.

    Raises:
      WeightsFormatError: the file has become shorter.
    """
    done = 0
    while done < len(into):  # a call gives 2 GiB at most
      count = os.preadv(self._file.fileno(), [into[done:]], offset + done)
      if not count:
        raise WeightsFormatError(
          f"{self.path} became shorter while it was read; download it again"
        )
      done += count
    self.bytes_read += done


class Tensor:
  """A tensor in a file; indexing reads the part asked for.

  Attributes:
    shape: of all of it.
  """

  def __init__(self, file: File, name: str, entry: dict, start: int):
    self.shape = tuple(entry["shape"])
    self._file, self._offset = file, start + entry["data_offsets"][0]
    if entry["dtype"] not in _DTYPES:
      raise WeightsFormatError(
        f"tensor {name} in {file.path}: type {entry['dtype']} is unknown;"
        f" expected one of {', '.join(_DTYPES)}"
      )
    self._dtype = np.dtype(_DTYPES[entry["dtype"]])

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    """The part at `index`, slices of step 1, one for every axis."""
    spans = [
      range(*entry.indices(size))
      for entry, size in zip(index, self.shape, strict=True)
    ]
    out = np.empty([len(span) for span in spans], self._dtype)
    if not out.size:
      return out
    view = memoryview(out.reshape(-1).view(np.uint8))
    done = 0
    for first, count in _runs(spans, self.shape):
      size = count * self._dtype.itemsize
      offset = self._offset + first * self._dtype.itemsize
      self._file.read(offset, view[done : done + size])
      done += size
    return out


def _runs(
  spans: list[range], shape: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
  """(first element, count) of the runs that lie side by side, in order."""
  inner = len(shape)  # axes from here on are whole
  while inner and len(spans[inner - 1]) == shape[inner - 1]:
    inner -= 1
  outer = max(inner - 1, 0)  # and this one is a run of them
  size = math.prod(shape[inner:])
  count = size * (len(spans[outer]) if inner else 1)
  strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  start = spans[outer].start * strides[outer] if inner else 0
  for place in itertools.product(*spans[:outer]):
    before = sum(
      at * stride for at, stride in zip(place, strides[:outer], strict=True)
    )
    yield before + start, count
