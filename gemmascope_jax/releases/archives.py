"""Zip archives from strangers: checked before anything of them is read."""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

import numpy as np

_LOCAL_HEADER = 30  # bytes of a zip member's, before its name
_LENGTHS = slice(26, 30)  # of its name and extra field, there

# Float32 weights shrink to no less than 1/1.2; zeros to 1/1000. A small member
# may be all zeros (biases that were never trained).
_MOST = 50
_SMALL = 2**24


def check(path: str | os.PathLike, suffix: str = "") -> tuple[str, ...]:
  """Looks at an archive's list of members.

  Args:
    path: of the archive.
    suffix: what its members end with.

  Returns:
    Their names.

  Raises:
    ValueError: truncated or no zip archive; two members of one name; a name
      that leads out of the archive, or lacks the suffix; a member that unpacks
      to more than 50 times its size.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
  except zipfile.BadZipFile as error:
    raise ValueError(
      f"{path} is truncated or not a zip archive ({error}): fetch or write it"
      " again"
    ) from error
  names = [entry.filename for entry in entries]
  if len(set(names)) < len(names):
    raise ValueError(f"{path} holds two members of one name; not read")
  for entry in entries:
    name = entry.filename
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split(
      "/"
    ):
      raise ValueError(
        f"{path}: its member {name!r} leads out of the archive; not read"
      )
    if not name.endswith(suffix):
      raise ValueError(f"{path}: its member {name!r} is not {suffix}; not read")
    packed = max(entry.compress_size, 1)
    if entry.file_size > max(_SMALL, _MOST * packed):
      raise ValueError(
        f"{path}: its member {name!r} of {packed} bytes would unpack to"
        f" {entry.file_size}, which weights do not; not read"
      )
  return tuple(names)


def start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
  """Where the bytes of a member that is not compressed begin."""
  file.seek(entry.header_offset)
  lengths = file.read(_LOCAL_HEADER)[_LENGTHS]
  skip = sum(np.frombuffer(lengths, "<u2").tolist())
  return entry.header_offset + _LOCAL_HEADER + skip
