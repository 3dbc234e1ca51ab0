"""Shards: files of rows, each whole or absent.

A site's folder holds, for shard i, `i.npy` [rows, D] (float32, or bfloat16 as
uint16 bits), `i.moments.npy` float64 [2, D] (sum and sum of squares of the
rows, over the rows) and, written last, `i.json` (rows, bytes, SHA-256 of
`i.npy`). A shard is finished when that last file is there.

Letters: D width of the site.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.store_plan import StorePlan

_SUM_ROWS = 128  # summed at once: few enough to stay in the CPU's cache


class CorruptStoreError(ValueError):
  """A file of a store is missing, truncated or altered; the text names it."""


def shard_path(root: pathlib.Path, site: str, shard: int) -> pathlib.Path:
  """The rows of one shard."""
  return root / site / f"{shard:05d}.npy"


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
    size = shard_path(root, site, shard).stat().st_size
  except FileNotFoundError:
    return False
  return size == sidecar["bytes"]


def open_shard(
  root: pathlib.Path, plan: StorePlan, site: str, shard: int
) -> np.ndarray:
  """Memory-maps the stored rows of a shard.

  Raises:
    CorruptStoreError: the file is missing, truncated or of another shape.
  """
  path = shard_path(root, site, shard)
  shape = (plan.shard_rows(shard), dict(plan.sites)[site])
  try:
    rows = np.load(path, mmap_mode="r")
  except (OSError, ValueError, EOFError) as error:
    raise CorruptStoreError(f"{path}: {error}. {remedy(path)}") from error
  if rows.shape != shape or rows.dtype != stored_dtype(plan.dtype):
    raise CorruptStoreError(
      f"{path} holds {rows.dtype}{list(rows.shape)}, expected"
      f" {stored_dtype(plan.dtype)}{list(shape)}. {remedy(path)}"
    )
  return rows


def remedy(path: os.PathLike) -> str:
  """How to get a bad file back."""
  return (
    f"Delete {path} and run the same harvest again: it makes the missing shard"
    " anew, and only that"
  )


class SiteWriter:
  """Writes the rows of one site, in order, into its unfinished shards.

  A context manager. Rows are written as they come, so memory does not grow
  with the shard; a shard appears under its name when its last row is written.
  """

  def __init__(self, root: pathlib.Path, plan: StorePlan, site: str):
    self._root, self._plan, self._site = root, plan, site
    self._width = dict(plan.sites)[site]
    self.missing = [
      shard
      for shard in range(plan.shards)
      if not is_finished(root, site, shard)
    ]
    self._todo = set(self.missing)
    self._stack = contextlib.ExitStack()
    self._shard: int | None = None

  def __enter__(self) -> SiteWriter:
    return self

  def __exit__(self, *exception) -> bool | None:
    # An open shard is dropped, whether or not there was an exception; a full
    # disk is turned into OutOfDiskError on the way.
    if exception[0] is None and self._shard is not None:
      error = RuntimeError(f"{self._site}: shard {self._shard} lacks rows")
      exception = (RuntimeError, error, None)
      self._stack.__exit__(*exception)
      raise error
    return self._stack.__exit__(*exception)

  def write(self, start: int, rows: np.ndarray) -> None:
    """Takes rows start..start+n-1 of the site, stored form [n, D].

    Rows of finished shards are passed over. Those of an unfinished shard have
    to come from its first to its last, without gaps.
    """
    size = self._plan.rows_per_shard
    while len(rows):
      shard, offset = divmod(start, size)
      part, rows = rows[: size - offset], rows[size - offset :]
      start += len(part)
      if shard in self._todo:
        if self._shard is None:
          self._open(shard)
        if (self._shard, self._written) != (shard, offset):
          raise RuntimeError(
            f"{self._site}: row {offset} of shard {shard} came when row"
            f" {self._written} of shard {self._shard} was due"
          )
        self._append(part)

  def _open(self, shard: int) -> None:
    rows = self._plan.shard_rows(shard)
    path = shard_path(self._root, self._site, shard)
    self._file = self._stack.enter_context(artifacts.atomic_write(path))
    self._shard, self._rows, self._written = shard, rows, 0
    self._moments = np.zeros((2, self._width), np.float64)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
      header,
      {
        "descr": np.lib.format.dtype_to_descr(stored_dtype(self._plan.dtype)),
        "fortran_order": False,
        "shape": (rows, self._width),
      },
    )
    self._file.write(header.getvalue())
    self._digest = hashlib.sha256(header.getvalue())

  def _append(self, part: np.ndarray) -> None:
    data = memoryview(np.ascontiguousarray(part)).cast("B")
    self._file.write(data)
    self._digest.update(data)
    for start in range(0, len(part), _SUM_ROWS):
      values = decode(part[start : start + _SUM_ROWS]).astype(np.float64)
      self._moments[0] += values.sum(axis=0)
      values *= values
      self._moments[1] += values.sum(axis=0)
    self._written += len(part)
    if self._written == self._rows:
      self._close()

  def _close(self) -> None:
    sidecar = {
      "rows": self._rows,
      "bytes": self._file.tell(),
      "sha256": self._digest.hexdigest(),
    }
    place = (self._root, self._site, self._shard)
    before = read_sidecar(*place)
    if before not in (None, sidecar):
      raise CorruptStoreError(
        f"{shard_path(*place)} was made anew, but with other bytes than those"
        f" that {sidecar_path(*place)} records: other hardware or versions than"
        " the store was made with. Harvest the whole store again, into another"
        " folder"
      )
    self._stack.close()  # fsync and rename
    artifacts.write_npy(moments_path(*place), self._moments)
    artifacts.write_json(sidecar_path(*place), sidecar)
    self._todo.remove(self._shard)
    self._shard = None
