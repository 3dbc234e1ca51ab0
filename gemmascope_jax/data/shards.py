"""Shards: files of rows, each whole or absent, whose every row is checked.

A site's folder holds, for shard i,

    i.npy          rows [n, D]: float32, or bfloat16 as uint16 bits
    i.checks.npy   uint64 [n]: the check of each row
    i.moments.npy  float64 [2, D]: sums of the rows and of their squares
    i.json         rows, bytes and the SHA-256 of the three; written last

A shard is finished when that last file is there.

Nobody can hash 100 TiB before training, yet no wrong row may be trained on. So
each row has a check, and every read compares it: the sum modulo 2**64 of the
row's bytes, taken as words, plus the shard's mark, which follows from the
store's fingerprint, the site and the shard's number. A check thus finds rows
that were altered, zeros where a crash lost a page, and rows of another store,
site or shard, even if their checks came with them. It runs at the speed of
memory; the SHA-256 is for `Store.verify`.

Letters: D width of the site.
"""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.store_plan import StorePlan

_CACHED_ROWS = 128  # gathered, then checked while the CPU still caches them


class CorruptStoreError(ValueError):
  """A file of a store is missing, truncated or altered; the text names it."""


def shard_path(root: pathlib.Path, site: str, shard: int) -> pathlib.Path:
  """The rows of one shard."""
  return root / site / f"{shard:05d}.npy"


def checks_path(root: pathlib.Path, site: str, shard: int) -> pathlib.Path:
  """The checks of the rows of one shard."""
  return root / site / f"{shard:05d}.checks.npy"


def moments_path(root: pathlib.Path, site: str, shard: int) -> pathlib.Path:
  """The sums over one shard."""
  return root / site / f"{shard:05d}.moments.npy"


def sidecar_path(root: pathlib.Path, site: str, shard: int) -> pathlib.Path:
  """What a shard is; there only once the shard is finished."""
  return root / site / f"{shard:05d}.json"


def stored_dtype(dtype: str) -> np.dtype:
  """The `.npy` dtype of rows: bfloat16 is stored as its bits."""
  return np.dtype({"float32": "<f4", "bfloat16": "<u2"}[dtype])


def encode(rows: np.ndarray, dtype: str) -> np.ndarray:
  """Rows [n, D] in the form in which they are stored."""
  if dtype == "float32":
    return np.ascontiguousarray(rows, "<f4")
  return np.ascontiguousarray(rows, ml_dtypes.bfloat16).view("<u2")


def decode(stored: np.ndarray) -> np.ndarray:
  """Stored rows [n, D] as float32."""
  stored = np.asarray(stored)  # of a memory map's subclass, the plain array
  if stored.dtype == np.uint16:
    return stored.view(ml_dtypes.bfloat16).astype(np.float32)
  return stored.astype(np.float32, copy=False)


def row_checks(stored: np.ndarray) -> np.ndarray:
  """The check of each row, without the shard's mark.

  Args:
    stored: rows [n, D] in stored form, contiguous.

  Returns:
    uint64 [n]: sums modulo 2**64 of a row's bytes as little-endian unsigned
    words of 8 bytes (of 4 or 2 if 8 does not divide the row's length).
  """
  length = stored.shape[1] * stored.itemsize
  word = next(f"<u{size}" for size in (8, 4, 2) if length % size == 0)
  return np.add.reduce(stored.view(word), axis=1, dtype=np.uint64)


def shard_mark(plan: StorePlan, site: str, shard: int) -> np.uint64:
  """What is added to the checks of a shard: it tells shards apart."""
  name = f"{plan.fingerprint}/{site}/{shard}".encode()
  return np.frombuffer(hashlib.sha256(name).digest()[:8], "<u8")[0]


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
  """What a `.npy` file of such an array begins with."""
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header,
    {
      "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
      "fortran_order": False,
      "shape": shape,
    },
  )
  return header.getvalue()


def read_sidecar(
  root: pathlib.Path, site: str, shard: int
) -> dict[str, Any] | None:
  """A finished shard's sidecar, or None. Says nothing about its rows."""
  path = sidecar_path(root, site, shard)
  return artifacts.read_json(path) if path.exists() else None


def is_finished(root: pathlib.Path, site: str, shard: int) -> bool:
  """Whether a shard is there in full length (its bytes are not read)."""
  sidecar = read_sidecar(root, site, shard)
  if sidecar is None or not moments_path(root, site, shard).exists():
    return False
  try:
    checks_path(root, site, shard).stat()
    size = shard_path(root, site, shard).stat().st_size
  except FileNotFoundError:
    return False
  return size == sidecar["bytes"]


class Shard:
  """A shard open for reading; safe to share between threads.

  Attributes:
    path: of its rows.
    checks_path: of their checks.
  """

  def __init__(
    self, root: pathlib.Path, plan: StorePlan, site: str, shard: int
  ):
    """Memory-maps rows and checks.

    Raises:
      CorruptStoreError: a file is missing, truncated or of another shape.
    """
    rows, width = plan.shard_rows(shard), dict(plan.sites)[site]
    self.path = shard_path(root, site, shard)
    self._rows = _map(self.path, stored_dtype(plan.dtype), (rows, width))
    self.checks_path = checks_path(root, site, shard)
    self._checks = _map(self.checks_path, np.dtype("<u8"), (rows,))
    self._mark = shard_mark(plan, site, shard)

  def take(
    self,
    offsets: np.ndarray,
    out: np.ndarray,
    places: np.ndarray | None = None,
  ) -> None:
    """Copies rows, each checked, without holding Python's lock for long.

    Args:
      offsets: int64 [n], within the shard.
      out: [m, D] in stored form; gets the rows.
      places: int64 [n]: which rows of `out` they are; None: the first n.

    Raises:
      CorruptStoreError: a row is not what its check says; names it.
    """
    if places is not None:
      scratch = np.empty((_CACHED_ROWS, out.shape[1]), out.dtype)
    for start in range(0, len(offsets), _CACHED_ROWS):
      some = offsets[start : start + _CACHED_ROWS]
      stop = start + len(some)
      part = out[start:stop] if places is None else scratch[: len(some)]
      np.take(self._rows, some, axis=0, out=part, mode="clip")
      wrong = row_checks(part) + self._mark != self._checks[some]
      if wrong.any():
        raise wrong_row(self.path, int(some[np.argmax(wrong)]))
      if places is not None:
        out[places[start:stop]] = part


def _map(
  path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
  """Memory-maps a `.npy` file that has to hold exactly this."""
  header = npy_header(dtype, shape)
  expected = len(header) + dtype.itemsize * int(np.prod(shape))
  try:
    with open(path, "rb") as file:
      found = file.read(len(header))
      size = os.fstat(file.fileno()).st_size
      if found == header and size == expected:
        return np.asarray(np.memmap(file, dtype, "r", len(header), shape))
  except OSError as error:
    raise CorruptStoreError(f"{path}: {error}. {remedy(path)}") from error
  raise CorruptStoreError(
    f"{path} holds {_what(found, size)}, expected {dtype}{list(shape)} in"
    f" {expected:,} bytes. {remedy(path)}"
  )


def _what(start: bytes, size: int) -> str:
  """What a file that starts so, of so many bytes, claims to be."""
  file = io.BytesIO(start)
  try:
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return f"{dtype}{list(shape)} in {size:,} bytes"
  except ValueError:
    return f"no such array in {size:,} bytes"


def wrong_row(path: os.PathLike | str, row: int) -> CorruptStoreError:
  """The error about a row that is not what its check says."""
  return CorruptStoreError(
    f"{path}: row {row} is not what was written there: its check is wrong."
    f" {remedy(path)}"
  )


def remedy(path: os.PathLike | str) -> str:
  """How to get a bad file back."""
  return (
    f"Delete {path} and run the same harvest again: it makes the missing shard"
    " anew, and only that"
  )
