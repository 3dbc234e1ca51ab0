"""`.npz` archives that need not fit into memory.

`np.savez` wants every array whole. `writing` takes them in pieces, in any order
of arrays, and leaves the same bytes; `members` maps the file instead of reading
it.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from gemmascope_jax.releases import archives


class Member(NamedTuple):
  """A float32 array of an archive.

  Attributes:
    name: its key.
    shape: its axes.
    last_axis_first: whether its bytes run along the first axis fastest, so that
      pieces of the last axis can be written one after another.
  """

  name: str
  shape: tuple[int, ...]
  last_axis_first: bool = False

  @property
  def header(self) -> bytes:
    """What stands before its bytes."""
    out = io.BytesIO()
    about = {
      "descr": "<f4",
      "fortran_order": self.last_axis_first,
      "shape": self.shape,
    }
    np.lib.format.write_array_header_1_0(out, about)
    return out.getvalue()


@contextlib.contextmanager
def writing(
  file: BinaryIO, members: Sequence[Member]
) -> Iterator[Callable[[str, np.ndarray], None]]:
  """Writes an archive.

  Args:
    file: empty, can be sought in.
    members: all of its arrays.

  Yields:
    (name, piece): the next numbers of that array, along its first axis, or its
    last where `Member.last_axis_first`.

  Raises:
    ValueError: at the end, an array that has not got all of its numbers.
  """
  entries, place, end = {}, {}, 0
  for member in members:
    entry = zipfile.ZipInfo(f"{member.name}.npy")
    entry.external_attr = 0o600 << 16
    entry.header_offset = end
    size = len(member.header) + 4 * math.prod(member.shape)
    entry.file_size = entry.compress_size = size
    entry.CRC = zlib.crc32(member.header)
    start = end + len(entry.FileHeader(zip64=True))
    end = start + size
    file.seek(start)
    file.write(member.header)
    entries[member.name], place[member.name] = (entry, member, end), file.tell()

  def append(name: str, piece: np.ndarray) -> None:
    entry, member, _ = entries[name]
    if member.last_axis_first:
      piece = piece.T
    content = np.ascontiguousarray(piece, "<f4").data.cast("B")
    entry.CRC = zlib.crc32(content, entry.CRC)
    file.seek(place[name])
    file.write(content)
    place[name] = file.tell()

  yield append
  for name, (_, member, last) in entries.items():
    if place[name] != last:
      raise ValueError(
        f"array {name} of shape {member.shape} was given {place[name] - last:+}"
        " bytes of what it needs"
      )
  with zipfile.ZipFile(file, "w") as archive:
    for entry, _, _ in entries.values():
      file.seek(entry.header_offset)
      file.write(entry.FileHeader(zip64=True))
      archive.filelist.append(entry)
    archive.start_dir = end  # where closing writes the list of members


def members(
  path: str | os.PathLike, mapped: bool = True
) -> dict[str, np.ndarray]:
  """The arrays of an archive.

  Args:
    path: of the archive.
    mapped: whether to map them, so that what is not looked at is not read; a
      compressed one is read whole anyway. Else all are read, and compared with
      the archive's checksums.

  Raises:
    ValueError: truncated or damaged; an array of Python objects, which reading
      would execute; a name that is a path; one that unpacks to far more than
      numbers can.
  """
  archives.check(path, ".npy")
  try:
    return _members(path, mapped)
  except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
    raise ValueError(
      f"{path} is damaged ({error}): fetch or write it again"
    ) from error


def _members(path, mapped: bool) -> dict[str, np.ndarray]:
  found = {}
  with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
    for entry in archive.infolist():
      name = entry.filename.removesuffix(".npy")
      with archive.open(entry) as member:
        shape, fortran_order, dtype = _header(member, path, name)
        offset = member.tell()
      size = dtype.itemsize * math.prod(shape)
      if entry.file_size != offset + size:
        raise ValueError(
          f"{path}: array {name} of shape {shape} needs {size} bytes, but"
          f" {entry.file_size - offset} are there: the file is damaged"
        )
      if not mapped or entry.compress_type != zipfile.ZIP_STORED:
        with archive.open(entry) as member:
          found[name] = np.lib.format.read_array(member, allow_pickle=False)
        continue
      found[name] = np.memmap(
        path,
        dtype,
        "r",
        offset=archives.start(file, entry) + offset,
        shape=shape,
        order="F" if fortran_order else "C",
      )
  return found


def _header(member, path, name: str):
  """(shape, fortran_order, dtype) of an array of numbers."""
  version = np.lib.format.read_magic(member)
  read = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(version)
  if read is None:
    raise ValueError(f"{path}: array {name} is of NumPy's format {version}")
  shape, fortran_order, dtype = read(member)
  if dtype.hasobject:
    raise ValueError(f"{path}: array {name} holds Python objects")
  if dtype.kind == "c":
    raise ValueError(
      f"{path}: array {name} holds complex numbers: expected real ones, as an"
      " SAE's are; write it again without the imaginary part"
    )
  return shape, fortran_order, dtype
