"""A folder on any file system that fsspec knows; see `files`.

Requests are tried a few times, beyond what the file system itself does.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.lock import LockedError
from gemmascope_jax.data.stores.files import Folder

_TRIES, _PAUSE_S = 4, 0.5  # of a request; the pause doubles


class RemoteFolder(Folder):
  """A folder of an fsspec file system."""

  is_local = False

  def __init__(self, system: Any, path: str, url: str):
    self.root, self._system, self._path = url, system, path

  def sizes(self, below: str = "") -> dict[str, int]:
    """See `Folder`."""
    where = f"{self._path}/{below}" if below else self._path
    self._system.invalidate_cache()  # others write here too
    try:
      entries = _tried(lambda: self._system.ls(where, detail=True))
    except (FileNotFoundError, NotADirectoryError):
      return {}
    self._system.invalidate_cache()
    found = {}
    for entry in entries:
      last = entry["name"].rstrip("/").rpartition("/")[2]
      if entry["type"] == "file":
        found[f"{below}/{last}" if below else last] = entry["size"]
    return found

  def entries(self) -> list[str]:
    """See `Folder`."""
    self._system.invalidate_cache()
    try:
      found = _tried(lambda: self._system.ls(self._path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
      return []
    return [name.rstrip("/").rpartition("/")[2] for name in found]

  def open(self, name: str) -> BinaryIO:
    """See `Folder`."""
    return _tried(lambda: self._system.open(self._full(name), "rb"))

  def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
    """See `Folder`."""
    return _tried(
      lambda: self._system.cat_file(self._full(name), start=start, end=stop)
    )

  def array(self, name: str) -> np.ndarray:
    """See `Folder`."""
    return np.load(io.BytesIO(self.read(name)))

  @contextlib.contextmanager
  def write(self, name: str) -> Iterator[BinaryIO]:
    """See `Folder`."""
    with tempfile.TemporaryDirectory(prefix="gemmascope_jax.") as aside:
      whole = pathlib.Path(aside) / "file"
      with artifacts.atomic_write(whole) as file:
        yield file
      target = self._full(name)
      _tried(
        lambda: self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
      )
      _tried(lambda: self._system.put_file(str(whole), target))

  def remove(self, name: str) -> None:
    """See `Folder`."""
    with contextlib.suppress(FileNotFoundError):
      _tried(lambda: self._system.rm_file(self._full(name)))

  def rename(self, name: str, new: str) -> None:
    """See `Folder`."""
    _tried(lambda: self._system.mv(self._full(name), self._full(new)))

  @contextlib.contextmanager
  def lock(self, name: str) -> Iterator[None]:
    """See `Folder`; the best that can be done where there are no locks."""
    holder = {"host": socket.gethostname(), "pid": os.getpid()}
    with contextlib.suppress(FileNotFoundError):
      found = self.read_json(name)
      if found == holder or not _is_gone(found):
        raise LockedError(
          f"{self.root} may be being written by process {found.get('pid')} on"
          f" {found.get('host')}; if that process is gone, delete"
          f" {self.path(name)} and run the same command again"
        )
    self.write_json(name, holder)
    try:
      yield
    finally:
      self.remove(name)

  def _full(self, name: str) -> str:
    return f"{self._path}/{name}"


def _tried(request: Callable[[], Any]) -> Any:
  """A request, again if it fails in a way that may pass."""
  for attempt in range(_TRIES):
    try:
      return request()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
      raise
    except OSError as error:
      if attempt + 1 == _TRIES or isinstance(error, artifacts.OutOfDiskError):
        raise
      time.sleep(_PAUSE_S * 2**attempt)
  raise AssertionError("unreachable")


def _is_gone(holder: dict[str, Any]) -> bool:
  """Whether a lock's holder was a process of this host that has ended."""
  if holder.get("host") != socket.gethostname():
    return False
  try:
    os.kill(int(holder["pid"]), 0)
  except ProcessLookupError:
    return True
  except (PermissionError, KeyError, ValueError):
    return False
  return False
