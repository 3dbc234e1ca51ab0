"""The formats of SAEs that are read and written, recognised by content.

A folder is recognised by the file in it that holds the arrays, and that file by
its first bytes and the names of its arrays; what a file is called decides
nothing. To add a format: a module with `load` and maybe `save`, and a line in
`FORMATS`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from gemmascope_jax.releases import (
  archives,
  circuit_tracer,
  dictionary_learning,
  gemma_scope,
  gemma_scope_2,
  saelens,
  tensors,
)
from gemmascope_jax.sae.sae import SAE


class Format(NamedTuple):
  """A format.

  Attributes:
    files: what its arrays are in, for messages.
    load: (folder or file, member, mesh) -> SAE.
    save: (SAE, folder) -> the folder.
    check: raises `ValueError` for an SAE that the format cannot hold.
    as_read: the SAE that `load` gives for what `save` wrote of one: the same,
      unless the format holds other numbers, which are rounded.
  """

  files: str
  load: Callable[[pathlib.Path, int | str | None, Mesh | None], SAE]
  save: Callable[[SAE, str | os.PathLike], pathlib.Path]
  check: Callable[[SAE], object]
  as_read: Callable[[SAE], SAE] = lambda sae: sae


FORMATS: dict[str, Format] = {
  "gemma_scope": Format(
    gemma_scope.ARRAYS,
    lambda path, member, mesh: gemma_scope.load(path, mesh),
    gemma_scope.save,
    lambda sae: None,
  ),
  "gemma_scope_2": Format(
    gemma_scope_2.ARRAYS,
    lambda path, member, mesh: _gemma_scope_2(path, member, mesh),
    gemma_scope_2.save,
    gemma_scope_2.check,
  ),
  "saelens": Format(
    f"{saelens.CONFIG} and {saelens.ARRAYS}",
    lambda path, member, mesh: saelens.load(path, mesh),
    saelens.save,
    saelens.check,
  ),
  "dictionary_learning": Format(
    dictionary_learning.ARRAYS,
    lambda path, member, mesh: dictionary_learning.load(path, mesh),
    dictionary_learning.save,
    dictionary_learning.check,
    dictionary_learning.as_read,
  ),
  "circuit_tracer": Format(
    circuit_tracer.ARRAYS.format("L"),
    lambda path, member, mesh: circuit_tracer.load(path, member, mesh),
    circuit_tracer.save,
    circuit_tracer.check,
  ),
}

SUFFIXES = (".npz", ".safetensors", ".pt")
_DEEPEST = 4  # folders of a release below its root
NOT_ARRAYS = ("examples.safetensors", "sparsity.safetensors")


def recognise(path: str | os.PathLike) -> str | None:
  """The name of the format of a file or folder; None: nothing there is one.

  Raises:
    ValueError: a file that ends as one with arrays, but is none that we know.
  """
  file = _arrays_of(pathlib.Path(path))
  return None if file is None else _of_file(file)


def _arrays_of(path: pathlib.Path) -> pathlib.Path | None:
  """The file that holds the arrays, or the first of several."""
  if not path.is_dir():
    return path if path.is_file() else None
  files = [
    file
    for file in sorted(path.iterdir())
    if file.suffix in SUFFIXES and file.name not in NOT_ARRAYS
  ]
  first = (gemma_scope.ARRAYS, saelens.ARRAYS, dictionary_learning.ARRAYS)
  return min(files, key=lambda file: file.name not in first, default=None)


def below(path: str | os.PathLike, most: int = 3) -> list[str]:
  """Some folders below a folder that seem to hold SAEs, for messages."""
  path, found = pathlib.Path(path), []
  for folder, subfolders, files in os.walk(path):
    subfolders.sort()
    depth = len(pathlib.Path(folder).relative_to(path).parts)
    if depth >= _DEEPEST:
      subfolders.clear()
    if any(name.endswith(SUFFIXES) for name in files):
      found.append(folder)
    if len(found) == most:
      break
  return found


def _of_file(file: pathlib.Path) -> str:
  with open(file, "rb") as opened:
    start = opened.read(9)
  if _is_safetensors(start, file.stat().st_size):
    return _of_safetensors(file)
  if start[:2] == b"PK":
    names = archives.check(file)
    if any(name.endswith("/data.pkl") for name in names):
      return "dictionary_learning"
    return "gemma_scope"
  if file.suffix == ".npz":
    return "gemma_scope"  # which says what is wrong with it
  if file.suffix == ".pt" or start[:1] == b"\x80":
    return "dictionary_learning"
  return _of_safetensors(file)


def _is_safetensors(start: bytes, size: int) -> bool:
  """Whether a file starts with a header's length and a JSON object.

  Such a length may be the bytes with which a zip archive or a pickle starts.
  """
  return int.from_bytes(start[:8], "little") < size and start[8:] == b"{"


def _of_safetensors(file: pathlib.Path) -> str:
  keys = tensors.keys(file)
  if gemma_scope_2.is_one(keys):
    return "gemma_scope_2"
  if (file.parent / saelens.CONFIG).exists():
    return "saelens"
  if circuit_tracer.is_one(keys):
    return "circuit_tracer"
  raise ValueError(
    f"{file} holds {', '.join(sorted(keys)[:8]) or 'nothing'}: no SAE in a"
    f" format that we know ({', '.join(FORMATS)})"
  )


def load(
  path: str | os.PathLike,
  member: int | str | None = None,
  mesh: Mesh | None = None,
) -> SAE | None:
  """Loads whatever SAE is at a path; None: nothing there is one.

  Args:
    path: a file or folder.
    member: of a folder of several layers, the layer.
    mesh: devices to load it onto; None: NumPy arrays.

  Raises:
    ValueError: as the format's `load`; a member of a single SAE.
  """
  path = pathlib.Path(path)
  file = _arrays_of(path)
  if file is None:
    return None
  found = _of_file(file)
  several = found in _SEVERAL and _SEVERAL[found](file.parent)
  if not several:
    path = file  # whatever it is called
  if member is not None and not (several and path.is_dir()):
    raise ValueError(
      f"member={member!r}: {path} is a single SAE, which has no members; leave it"
      " out"
    )
  return FORMATS[found].load(path, member, mesh)


def _gemma_scope_2(path, member, mesh) -> SAE:
  from gemmascope_jax.releases import clt

  if member is not None and path.is_dir():
    return clt.open(path).layer(int(member))
  return gemma_scope_2.load(path, mesh)


# Formats with folders of several files, and which files.
_SEVERAL = {
  "gemma_scope_2": gemma_scope_2.layer_files,
  "circuit_tracer": circuit_tracer.layer_files,
}
