"""One writer at a time on a folder.

The lock is the kernel's (`flock`), so a killed writer's lock is free at once;
the file's content says who holds it. A file left by a writer on this host that
is gone is taken over; one left from another host is not, since file systems
shared between hosts don't all carry `flock` across.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator


class LockedError(OSError):
  """Another process is writing to the folder."""


@contextlib.contextmanager
def write_lock(folder: str | os.PathLike, name: str) -> Iterator[None]:
  """Holds the only write lock on a folder, which is made if need be.

  Args:
    folder: the folder.
    name: file name of the lock in it; gone when nobody writes.

  Raises:
    LockedError: another process writes there; names its host and pid.
  """
  path = pathlib.Path(folder) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor = _acquire(path)
  try:
    holder = {"host": socket.gethostname(), "pid": os.getpid()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    yield
  finally:
    path.unlink(missing_ok=True)
    os.close(descriptor)


def _acquire(path: pathlib.Path) -> int:
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = _holder(descriptor)
      os.close(descriptor)
      raise LockedError(
        f"{path.parent} is being written by {_who(holder)}: wait for it, stop"
        " it, or write to another folder"
      ) from None
    holder = _holder(descriptor)
    if holder.get("host", socket.gethostname()) != socket.gethostname():
      os.close(descriptor)
      raise LockedError(
        f"{path.parent} may be being written by {_who(holder)}; if that"
        f" process is gone, delete {path} and run the same command again"
      )
    if _is_still(path, descriptor):
      return descriptor
    os.close(descriptor)  # its owner removed it meanwhile: try the new one


def _is_still(path: pathlib.Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
  except FileNotFoundError:
    return False


def _holder(descriptor: int) -> dict:
  try:
    return json.loads(os.pread(descriptor, 4096, 0))
  except ValueError:
    return {}  # its owner has made it but not yet signed it


def _who(holder: dict) -> str:
  pid, host = holder.get("pid", "?"), holder.get("host", "an unknown host")
  return f"process {pid} on {host}"
