"""What is derived once and kept: the cache folder, and hashes of large files.

Everything in the folder can be deleted at any time; it is made again. Entries
are named by the hash of what they come from and appear whole or not at all
(`artifacts.atomic_write`).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time

from gemmascope_jax import artifacts

ENVIRONMENT = "GEMMASCOPE_CACHE"

# A file changed less than this before it was hashed could change again within
# the same tick of the file system's clock, so its hash is not remembered.
_SETTLED_NS = 2_000_000_000


def folder(*parts: str) -> pathlib.Path:
  """The cache folder, or a folder in it, made if need be.

  It is `~/.cache/gemmascope_jax`, or what the environment variable
  GEMMASCOPE_CACHE names.

  Args:
    *parts: names of folders below it.

  Raises:
    OSError: it can't be made.
  """
  root = os.environ.get(ENVIRONMENT) or "~/.cache/gemmascope_jax"
  path = pathlib.Path(root).expanduser().joinpath(*parts)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(
      error.errno,
      f"cache folder {path} can't be made ({error.strerror}); set the"
      f" environment variable {ENVIRONMENT} to a folder that can be written",
    ) from error
  return path


def file_hash(path: str | os.PathLike) -> str:
  """Hex SHA-256 of a file, remembered as long as the file is untouched.

  Untouched means: same size, inode, and times of last change (of the content
  and of the inode, the second of which no program can set back).

  Args:
    path: the file.

  Raises:
    FileNotFoundError: there is none.
  """
  path = pathlib.Path(path).resolve(strict=True)
  key = artifacts.fingerprint(os.fspath(path))
  identity = _identity(path)
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    record = artifacts.read_json(folder("hashes") / f"{key}.json")
    if record["identity"] == identity:
      return record["sha256"]
  started = time.time_ns()
  digest = artifacts.sha256_file(path)
  settled = started - max(identity["changed"]) > _SETTLED_NS
  if settled and _identity(path) == identity:
    # A cache that can't be written costs time, not correctness.
    with contextlib.suppress(OSError):
      artifacts.write_json(
        folder("hashes") / f"{key}.json",
        {"identity": identity, "path": path, "sha256": digest},
      )
  return digest


def _identity(path: pathlib.Path) -> dict:
  stat = path.stat()
  return {
    "changed": [stat.st_mtime_ns, stat.st_ctime_ns],
    "inode": [stat.st_dev, stat.st_ino],
    "size": stat.st_size,
  }
