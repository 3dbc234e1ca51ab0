"""Files that say what they are, and are never half written.

Everything the project writes (shards, manifests, checkpoints' side files,
releases, results) goes through this module: written aside, fsynced, renamed.
A reader that sees a file under its final name sees a whole one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import pathlib
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

_TMP_SUFFIX = ".incomplete"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutOfDiskError(OSError):
  """The disk filled up while an artefact was being written."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a binary file that appears at `path` only once it is complete.

  Args:
    path: final name; parent folders are created.

  Yields:
    A writable binary file. On a clean exit it is flushed, fsynced and renamed
    to `path`; on an exception it is removed and `path` is left as it was.

  Raises:
    OutOfDiskError: the device is full, or a limit on files' sizes is reached;
      nothing at `path` was touched.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  mark = f"{os.getpid()}-{secrets.token_hex(4)}"  # containers share pids
  aside = path.with_name(f"{path.name}.{mark}{_TMP_SUFFIX}")
  try:
    with open(aside, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(aside, path)
    _fsync_folder(path.parent)
  except BaseException as error:
    aside.unlink(missing_ok=True)
    if isinstance(error, OSError) and error.errno in _FULL:
      why = "" if error.errno != errno.EFBIG else " (a limit on a file's size)"
      raise OutOfDiskError(
        error.errno,
        f"out of disk while writing {path}{why}: nothing was lost; free space"
        " on that disk, or write to another one, and run the same"
        " command again",
      ) from error
    raise


def _fsync_folder(folder: pathlib.Path) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def json_bytes(value: Any) -> bytes:
  """`value` as indented, key-sorted JSON; the same value, same bytes."""
  text = json.dumps(
    value, indent=2, sort_keys=True, default=_jsonable, allow_nan=False
  )
  return text.encode() + b"\n"


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes `value` as indented, key-sorted JSON; the same value, same bytes."""
  write_bytes(path, json_bytes(value))


def canonical_json(value: Any) -> str:
  """One line of key-sorted JSON; equal values give equal strings."""
  return json.dumps(value, sort_keys=True, default=_jsonable)


def differences(found: Any, asked: Any, name: str = "") -> list[str]:
  """Where two JSON values differ: ["its recipes[0].width is 64, not 96"].

  Args:
    found: what is there.
    asked: what should be.
    name: of the values; empty for the whole.
  """
  if isinstance(found, dict) and isinstance(asked, dict):
    pairs = [
      (f"{name}.{key}" if name else key, found.get(key), asked.get(key))
      for key in {**asked, **found}
    ]
  elif (
    isinstance(found, list)
    and isinstance(asked, list)
    and len(found) == len(asked)
  ):
    pairs = [
      (f"{name}[{index}]", *pair)
      for index, pair in enumerate(zip(found, asked, strict=True))
    ]
  else:
    same = found == asked
    return [] if same else [f"its {name} is {found}, not {asked}"]
  return [text for at, *pair in pairs for text in differences(*pair, at)]


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON artefact.

  Raises:
    FileNotFoundError: there is none.
    ValueError: the file is not JSON; names the file.
  """
  with open(path, encoding="utf-8") as file:
    try:
      return json.load(file)
    except json.JSONDecodeError as error:
      raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_npy(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes one `.npy` file atomically."""
  with atomic_write(path) as file:
    np.save(file, np.ascontiguousarray(array))


def npy_bytes(array: np.ndarray) -> bytes:
  """The content of the `.npy` file that `write_npy` makes of an array."""
  file = io.BytesIO()
  np.save(file, np.ascontiguousarray(array))
  return file.getvalue()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes one file atomically."""
  with atomic_write(path) as file:
    file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes UTF-8 text atomically."""
  write_bytes(path, text.encode())


def _jsonable(value: Any) -> Any:
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return dataclasses.asdict(value)
  if hasattr(value, "to_dict"):
    return value.to_dict()
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, (set, frozenset)):
    return sorted(value)
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  raise TypeError(f"{type(value).__name__} can't be written as JSON: {value!r}")


def sha256_file(path: str | os.PathLike) -> str:
  """Hex SHA-256 of a file's bytes, read in chunks of 8 MiB."""
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while chunk := file.read(8 << 20):
      digest.update(chunk)
  return digest.hexdigest()


def sha256_arrays(arrays: Iterable[Any]) -> str:
  """Hex SHA-256 over arrays' dtypes, shapes and values, in order."""
  digest = hashlib.sha256()
  for array in arrays:
    array = np.ascontiguousarray(array)
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    # A view, as not every dtype (bfloat16) lends its memory.
    digest.update(array.reshape(-1).view(np.uint8) if array.size else b"")
  return digest.hexdigest()


def fingerprint(value: Any) -> str:
  """First 16 hex digits of the SHA-256 of `value`'s canonical JSON."""
  return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@functools.cache
def code_version() -> str:
  """The package's version, with the git commit where there is one."""
  from gemmascope_jax import __version__

  root = pathlib.Path(__file__).resolve().parent.parent
  git = ["git", "-C", str(root)]
  try:
    if not (root / ".git").exists():
      return __version__
    commit = subprocess.check_output(
      [*git, "rev-parse", "--short=12", "HEAD"],
      stderr=subprocess.DEVNULL,
      text=True,
    ).strip()
    changed = subprocess.check_output(
      [*git, "status", "--porcelain", "--untracked-files=no"],
      stderr=subprocess.DEVNULL,
      text=True,
    ).strip()
  except (OSError, subprocess.CalledProcessError):
    return __version__
  return f"{__version__}+{commit}{'.modified' if changed else ''}"
