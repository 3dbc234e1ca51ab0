"""A folder of a store: on this machine, or wherever fsspec reaches.

`files.folder(where)` takes a path or a URL ("s3://bucket/x", "gs://...",
"memory://x"; "file:///..." is a local path). Both kinds of folder can do what a
store needs, by names relative to them, such as "res.5/00000.npy".

Local files are memory-mapped, written aside and renamed, and one writer at a
time is the kernel's guarantee. Elsewhere, parts of files are fetched when they
are wanted; a file is written to a temporary one on this machine and sent when
it is whole (object stores then show it at once or not at all); and the lock is
a file that says who writes, which two writers that start in the same instant
may both miss.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.lock import write_lock

_CHUNK = 8 << 20  # bytes read at once
_CONCURRENT = 32  # requests at a time


def folder(where: str | os.PathLike | Folder) -> Folder:
  """The folder at a path or URL; it need not exist.

  Raises:
    ValueError: fsspec knows no such kind of URL.
    ImportError: that kind needs a package; names it.
  """
  if isinstance(where, Folder):
    return where
  if not isinstance(where, str) or "://" not in where:
    return LocalFolder(pathlib.Path(where))
  from fsspec.core import url_to_fs
  from fsspec.implementations.local import LocalFileSystem

  from gemmascope_jax.data.stores.remote_files import RemoteFolder

  system, path = url_to_fs(where)
  if type(system) is LocalFileSystem:
    return LocalFolder(pathlib.Path(path))
  return RemoteFolder(system, path.rstrip("/"), where.rstrip("/"))


class Folder(abc.ABC):
  """Files by their names relative to a folder.

  Attributes:
    root: a `pathlib.Path` if it is local, else the URL; for people.
    is_local: whether files can be memory-mapped.
  """

  root: pathlib.Path | str
  is_local: bool

  @abc.abstractmethod
  def sizes(self, below: str = "") -> dict[str, int]:
    """{name: bytes} of the files right in a sub-folder, {} if it is not there.

    Names are relative to the folder, not to the sub-folder.
    """

  @abc.abstractmethod
  def entries(self) -> list[str]:
    """Names of files and sub-folders right in the folder; [] if it is new."""

  @abc.abstractmethod
  def open(self, name: str) -> BinaryIO:
    """A file, open for reading from its start to its end."""

  @abc.abstractmethod
  def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes start..stop-1 of a file, fewer if it is shorter."""

  @abc.abstractmethod
  def array(self, name: str) -> np.ndarray:
    """The array of a `.npy` file: memory-mapped, or elsewhere in memory."""

  @abc.abstractmethod
  def write(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """A new file, which appears under its name once it is whole.

    See `artifacts.atomic_write`, also for what is raised.
    """

  @abc.abstractmethod
  def remove(self, name: str) -> None:
    """Removes a file, if it is there."""

  @abc.abstractmethod
  def rename(self, name: str, new: str) -> None:
    """Renames a file; one that has the new name is replaced."""

  @abc.abstractmethod
  def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
    """Holds the only write lock of a name; see `lock.write_lock`."""

  def path(self, name: str) -> str:
    """A file's full name, for people."""
    return f"{self.root}/{name}" if name else str(self.root)

  def exists(self, name: str) -> bool:
    """Whether there is such a file."""
    return name in self.sizes(name.rpartition("/")[0])

  def sha256(
    self, name: str, tell: Callable[[int], Any] = lambda size: None
  ) -> str:
    """Hex SHA-256 of a file; `tell` is told of the bytes as they are read."""
    digest = hashlib.sha256()
    with self.open(name) as file:
      while chunk := file.read(_CHUNK):
        digest.update(chunk)
        tell(len(chunk))
    return digest.hexdigest()

  def read_json(self, name: str) -> Any:
    """Reads a JSON file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not JSON; names it.
    """
    try:
      return json.loads(self.read(name))
    except ValueError as error:  # of UTF-8 or of JSON
      raise ValueError(
        f"{self.path(name)} is not valid JSON: {error}"
      ) from error

  def write_bytes(self, name: str, content: bytes) -> None:
    """Writes one file, whole or not at all."""
    with self.write(name) as file:
      file.write(content)

  def write_json(self, name: str, value: Any) -> None:
    """As `artifacts.write_json`."""
    self.write_bytes(name, artifacts.json_bytes(value))

  def write_npy(self, name: str, array: np.ndarray) -> None:
    """As `artifacts.write_npy`."""
    with self.write(name) as file:
      np.save(file, np.ascontiguousarray(array))


class LocalFolder(Folder):
  """A folder of this machine's file system."""

  is_local = True

  def __init__(self, root: pathlib.Path):
    self.root = root

  def sizes(self, below: str = "") -> dict[str, int]:
    """See `Folder`."""
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      with os.scandir(self.root / below) as entries:
        for entry in entries:
          # One that is renamed meanwhile is not there.
          with contextlib.suppress(FileNotFoundError):
            if entry.is_file():
              name = f"{below}/{entry.name}" if below else entry.name
              found[name] = entry.stat().st_size
    return found

  def entries(self) -> list[str]:
    """See `Folder`."""
    return os.listdir(self.root) if self.root.is_dir() else []

  def exists(self, name: str) -> bool:
    """See `Folder`."""
    return (self.root / name).exists()

  def open(self, name: str) -> BinaryIO:
    """See `Folder`."""
    return open(self.root / name, "rb")

  def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
    """See `Folder`."""
    with self.open(name) as file:
      file.seek(start)
      return file.read() if stop is None else file.read(stop - start)

  def array(self, name: str) -> np.ndarray:
    """See `Folder`."""
    return np.load(self.root / name, mmap_mode="r")

  def write(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """See `Folder`."""
    return artifacts.atomic_write(self.root / name)

  def remove(self, name: str) -> None:
    """See `Folder`."""
    (self.root / name).unlink(missing_ok=True)

  def rename(self, name: str, new: str) -> None:
    """See `Folder`."""
    os.replace(self.root / name, self.root / new)

  def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
    """See `Folder`."""
    return write_lock(self.root, name)


def concurrently(work: Callable[[Any], Any], items: Iterable[Any]) -> list:
  """`work` of each item, in order, several at a time; the first error ends it.

  For requests: threads that mostly wait.
  """
  stop = threading.Event()

  def unless_stopped(item):
    try:
      return None if stop.is_set() else work(item)
    except BaseException:
      stop.set()
      raise

  with concurrent.futures.ThreadPoolExecutor(_CONCURRENT) as pool:
    futures = [pool.submit(unless_stopped, item) for item in items]
  errors = [future.exception() for future in futures]
  if stop.is_set():
    raise next(error for error in errors if error is not None)
  return [future.result() for future in futures]


def free_bytes(place: Folder) -> int:
  """Room on the disk that the folder's files are first written to."""
  if not place.is_local:
    return shutil.disk_usage(tempfile.gettempdir()).free
  there = place.root
  while not there.exists():
    there = there.parent
  return shutil.disk_usage(there).free
