"""Writes a site's rows, in order, into its shards that are missing.

Letters: D width of the site.
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data import shards
from gemmascope_jax.data.store_plan import StorePlan

_SUM_ROWS = 128  # summed at once: few enough to stay in the CPU's cache


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
      if not shards.is_finished(root, site, shard)
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
    path = shards.shard_path(self._root, self._site, shard)
    self._file = self._stack.enter_context(artifacts.atomic_write(path))
    self._shard, self._rows, self._written = shard, rows, 0
    self._moments = np.zeros((2, self._width), np.float64)
    self._checks = np.empty(rows, "<u8")
    self._mark = shards.shard_mark(self._plan, self._site, shard)
    header = shards.npy_header(
      shards.stored_dtype(self._plan.dtype), (rows, self._width)
    )
    self._file.write(header)
    self._digest = hashlib.sha256(header)

  def _append(self, part: np.ndarray) -> None:
    part = np.ascontiguousarray(part)
    data = memoryview(part).cast("B")
    self._file.write(data)
    self._digest.update(data)
    for start in range(0, len(part), _SUM_ROWS):
      some = part[start : start + _SUM_ROWS]
      first = self._written + start
      self._checks[first : first + len(some)] = (
        shards.row_checks(some) + self._mark
      )
      values = shards.decode(some).astype(np.float64)
      self._moments[0] += values.sum(axis=0)
      values *= values
      self._moments[1] += values.sum(axis=0)
    self._written += len(part)
    if self._written == self._rows:
      self._close()

  def _close(self) -> None:
    checks = artifacts.npy_bytes(self._checks)
    moments = artifacts.npy_bytes(self._moments)
    sidecar = {
      "rows": self._rows,
      "bytes": self._file.tell(),
      "sha256": self._digest.hexdigest(),
      "checks_sha256": hashlib.sha256(checks).hexdigest(),
      "moments_sha256": hashlib.sha256(moments).hexdigest(),
    }
    place = (self._root, self._site, self._shard)
    before = shards.read_sidecar(*place)
    if before not in (None, sidecar):
      raise shards.CorruptStoreError(
        f"{shards.shard_path(*place)} was made anew, but with other bytes than those"
        f" that {shards.sidecar_path(*place)} records: other hardware or versions than"
        " the store was made with. Harvest the whole store again, into another"
        " folder"
      )
    self._stack.close()  # fsync and rename
    artifacts.write_bytes(shards.checks_path(*place), checks)
    artifacts.write_bytes(shards.moments_path(*place), moments)
    artifacts.write_json(shards.sidecar_path(*place), sidecar)
    self._todo.remove(self._shard)
    self._shard = None
