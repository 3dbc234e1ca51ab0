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

import dataclasses
import functools
import hashlib
import io
import math

import ml_dtypes
import numpy as np

from gemmascope_jax.data.stores.files import Folder
from gemmascope_jax.data.stores.store_plan import StorePlan

# What a shard's JSON file says.
SIDECAR = ("rows", "bytes", "sha256", "checks_sha256", "moments_sha256")


class CorruptStoreError(ValueError):
  """A file of a store is missing, truncated or altered; the text names it."""


def rows_name(site: str, shard: int) -> str:
  """File of the rows of one shard."""
  return f"{site}/{shard:05d}.npy"


def checks_name(site: str, shard: int) -> str:
  """File of the checks of the rows of one shard."""
  return f"{site}/{shard:05d}.checks.npy"


def moments_name(site: str, shard: int) -> str:
  """File of the sums over one shard."""
  return f"{site}/{shard:05d}.moments.npy"


def sidecar_name(site: str, shard: int) -> str:
  """File that says what a shard is; there only once the shard is finished."""
  return f"{site}/{shard:05d}.json"


def shard_number(name: str) -> int | None:
  """The shard that a file, by its name, belongs to; None: to no shard."""
  digits = name.rpartition("/")[2].partition(".")[0]
  return int(digits) if digits.isdecimal() else None


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


@dataclasses.dataclass(frozen=True)
class NpyForm:
  """A `.npy` file, its values apart.

  Attributes:
    dtype: of its array.
    shape: of its array.
  """

  dtype: np.dtype
  shape: tuple[int, ...]

  @functools.cached_property
  def header(self) -> bytes:
    """What the file begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
      header,
      {
        "descr": np.lib.format.dtype_to_descr(self.dtype),
        "fortran_order": False,
        "shape": self.shape,
      },
    )
    return header.getvalue()

  @property
  def row_bytes(self) -> int:
    """Bytes of each of the first axis's parts."""
    return math.prod(self.shape[1:]) * self.dtype.itemsize

  @property
  def bytes(self) -> int:
    """Of the whole file."""
    return len(self.header) + self.shape[0] * self.row_bytes

  def span(self, start: int, stop: int) -> tuple[int, int]:
    """Where in the file rows start..stop-1 begin and end."""
    first = len(self.header)
    return first + start * self.row_bytes, first + stop * self.row_bytes


def rows_form(plan: StorePlan, site: str, shard: int) -> NpyForm:
  """What the file of a shard's rows has to be."""
  shape = (plan.shard_rows(shard), dict(plan.sites)[site])
  return NpyForm(stored_dtype(plan.dtype), shape)


def checks_form(plan: StorePlan, shard: int) -> NpyForm:
  """What the file of a shard's checks has to be."""
  return NpyForm(np.dtype("<u8"), (plan.shard_rows(shard),))


def finished(files: Folder, plan: StorePlan, site: str) -> set[int]:
  """Shards of a site that are there in full length (no bytes are read)."""
  sizes = files.sizes(site)
  return {
    shard
    for shard in range(plan.shards)
    if sidecar_name(site, shard) in sizes
    and moments_name(site, shard) in sizes
    and sizes.get(rows_name(site, shard)) == rows_form(plan, site, shard).bytes
    and sizes.get(checks_name(site, shard)) == checks_form(plan, shard).bytes
  }


def is_wrong(
  stored: np.ndarray, checks: np.ndarray, mark: np.uint64
) -> np.ndarray:
  """Which rows are not what their checks say: bool [n].

  Args:
    stored: rows [n, D] in stored form.
    checks: uint64 [n], as they are stored.
    mark: of the shard that the rows should be of.
  """
  return row_checks(stored) + mark != checks


def wrong_row(path: str, row: int) -> CorruptStoreError:
  """The error about a row of a file that is not what its check says."""
  return CorruptStoreError(
    f"{path}: row {row} is not what was written there: its check is wrong."
    f" {remedy(path)}"
  )


def remedy(path: str) -> str:
  """How to get a bad file back."""
  return (
    f"Delete {path} and run the same harvest again: it makes the missing shard"
    " anew, and only that"
  )
