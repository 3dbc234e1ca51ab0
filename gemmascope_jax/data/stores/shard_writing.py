"""Writes a site's rows, in order, into its shards that are missing.

Letters: D width of the site.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
from collections.abc import Collection

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.stores import shards
from gemmascope_jax.data.stores.files import Folder
from gemmascope_jax.data.stores.store_plan import StorePlan

_SUM_ROWS = 128  # summed at once: few enough to stay in the CPU's cache


class SiteWriter:
  """Writes the rows of one site, in order, into its unfinished shards.

  A context manager. Rows are written as they come, so memory does not grow
  with the shard; a shard appears under its name when its last row is written.
  Getting it safely onto the disk, or sending it away, takes long: another
  thread does that while the next shard is written.

  Attributes:
    site: name of the site.
  """

  def __init__(
    self, files: Folder, plan: StorePlan, site: str, missing: Collection[int]
  ):
    self._files, self._plan, self.site = files, plan, site
    self._todo = set(missing)
    self._open_shard: _OpenShard | None = None
    self._finisher = concurrent.futures.ThreadPoolExecutor(1)
    self._hasher = concurrent.futures.ThreadPoolExecutor(1)
    self._finishing: concurrent.futures.Future | None = None

  def __enter__(self) -> SiteWriter:
    return self

  def __exit__(self, kind, error, trace) -> None:
    with self._finisher, self._hasher:  # the first waits for the last shard
      try:
        if self._open_shard is not None:
          lacking, self._open_shard = self._open_shard, None
          # A full disk becomes OutOfDiskError on the way.
          lacking.drop(error or RuntimeError("rows are missing"))
          if error is None:
            raise RuntimeError(f"{self.site}: shard {lacking.shard} lacks rows")
      finally:
        self._wait()

  def write(self, start: int, rows: np.ndarray) -> None:
    """Takes rows start..start+n-1 of the site, stored form [n, D].

    Rows of shards that it does not wait for are passed over. Those of one that
    it does have to come from its first to its last, without gaps.
    """
    size = self._plan.rows_per_shard
    while len(rows):
      shard, offset = divmod(start, size)
      part, rows = rows[: size - offset], rows[size - offset :]
      start += len(part)
      if shard in self._todo:
        self._append(shard, offset, part)

  def _append(self, shard: int, offset: int, part: np.ndarray) -> None:
    if self._open_shard is None:
      self._open_shard = _OpenShard(self._files, self._plan, self.site, shard)
    opened = self._open_shard
    if (opened.shard, opened.written) != (shard, offset):
      raise RuntimeError(
        f"{self.site}: row {offset} of shard {shard} came when row"
        f" {opened.written} of shard {opened.shard} was due"
      )
    opened.append(part, self._hasher)
    if opened.is_full:
      self._wait()  # for the shard before; its error drops this one, too
      self._todo.remove(shard)
      self._open_shard = None
      self._finishing = self._finisher.submit(opened.finish)

  def _wait(self) -> None:
    if self._finishing is not None:
      finishing, self._finishing = self._finishing, None
      finishing.result()


class _OpenShard:
  """One shard while its rows come."""

  def __init__(self, files: Folder, plan: StorePlan, site: str, shard: int):
    self._files, self._site, self.shard = files, site, shard
    form = shards.rows_form(plan, site, shard)
    self._rows, width = form.shape
    self.written = 0
    self._moments = np.zeros((2, width), np.float64)
    self._checks = np.empty(self._rows, "<u8")
    self._mark = shards.shard_mark(plan, site, shard)
    self._stack = contextlib.ExitStack()
    self._file = self._stack.enter_context(
      files.write(shards.rows_name(site, shard))
    )
    self._file.write(form.header)
    self._digest = hashlib.sha256(form.header)

  @property
  def is_full(self) -> bool:
    """Whether the last row was written."""
    return self.written == self._rows

  def append(
    self, part: np.ndarray, hasher: concurrent.futures.Executor
  ) -> None:
    """Writes rows [n, D]; SHA-256 is slowest and gets a thread of its own."""
    part = np.ascontiguousarray(part)
    data = memoryview(part).cast("B")
    hashed = hasher.submit(self._digest.update, data)
    self._file.write(data)
    for start in range(0, len(part), _SUM_ROWS):
      some = part[start : start + _SUM_ROWS]
      first = self.written + start
      self._checks[first : first + len(some)] = (
        shards.row_checks(some) + self._mark
      )
      values = shards.decode(some).astype(np.float64)
      self._moments[0] += values.sum(axis=0)
      values *= values
      self._moments[1] += values.sum(axis=0)
    hashed.result()
    self.written += len(part)

  def drop(self, error: BaseException) -> None:
    """Removes what was written, because of an error."""
    self._stack.__exit__(type(error), error, error.__traceback__)

  def finish(self) -> None:
    """Lets the full shard appear, and then its sidecar."""
    try:
      content = self._sidecar()
    except BaseException as error:
      self.drop(error)
      raise
    self._stack.close()  # fsync and rename, or upload
    for name, value in (
      (shards.checks_name, artifacts.npy_bytes(self._checks)),
      (shards.moments_name, artifacts.npy_bytes(self._moments)),
      (shards.sidecar_name, artifacts.json_bytes(content)),
    ):
      self._files.write_bytes(name(self._site, self.shard), value)

  def _sidecar(self) -> dict:
    sidecar = {
      "rows": self._rows,
      "bytes": self._file.tell(),
      "sha256": self._digest.hexdigest(),
      "checks_sha256": _sha256_npy(self._checks),
      "moments_sha256": _sha256_npy(self._moments),
    }
    name = shards.sidecar_name(self._site, self.shard)
    if self._files.exists(name) and self._files.read_json(name) != sidecar:
      rows = shards.rows_name(self._site, self.shard)
      raise shards.CorruptStoreError(
        f"{self._files.path(rows)} was made anew, but with other bytes than"
        f" those that {self._files.path(name)} records: other hardware or"
        " versions than the store was made with. Harvest the whole store"
        " again, into another folder"
      )
    return sidecar


def _sha256_npy(array: np.ndarray) -> str:
  return hashlib.sha256(artifacts.npy_bytes(array)).hexdigest()
