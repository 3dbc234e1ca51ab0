"""Rows of a store, gathered and checked: from memory maps, or over a network.

Letters: D width of the site.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import resource
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from gemmascope_jax.data.stores import shards
from gemmascope_jax.data.stores.files import Folder, LocalFolder, concurrently
from gemmascope_jax.data.stores.shards import CorruptStoreError
from gemmascope_jax.data.stores.store_plan import StorePlan

_CACHED_ROWS = 512  # gathered, then checked while the CPU still caches them
# Linux reads no more for one call than the device's read-ahead, whose default
# this is, and passes the rest over in silence.
_AHEAD_BYTES = 128 << 10
_REQUEST_BYTES = 8 << 20  # at most, of one request


class Held(Protocol):
  """Rows that were announced (`hold`); gives them in stored form."""

  def take(
    self, positions: np.ndarray, out: np.ndarray | None = None
  ) -> np.ndarray:
    """Some of the rows, each checked; safe to call from several threads.

    Args:
      positions: int64 [k], places among the rows that were announced.
      out: where to put them, [k, D] in stored form; None: a new array.

    Returns:
      [k, D] in stored form: float32, or uint16 bits of bfloat16.

    Raises:
      CorruptStoreError: a row is not the one that was written.
    """


class LocalRows:
  """Rows of a store on this machine, through memory maps."""

  def __init__(self, files: LocalFolder, plan: StorePlan):
    self._plan = plan
    self._shard = functools.lru_cache(maxsize=_most_open())(
      functools.partial(_MappedShard, files, plan)
    )

  def hold(self, site: str, rows: np.ndarray) -> Held:
    """Announces rows; the system reads them ahead, in sequence.

    They lie in memory that it takes back when it needs it.
    """
    runs = _runs(rows, self._plan.rows_per_shard)
    for shard, its_runs in itertools.groupby(runs, lambda run: run.shard):
      self._shard(site, shard).will_read(its_runs)
    return _LocalHeld(self, site, rows)

  def take(
    self, site: str, rows: np.ndarray, out: np.ndarray | None = None
  ) -> np.ndarray:
    """Rows in stored form, [n, D]."""
    if out is None:
      form = shards.rows_form(self._plan, site, 0)
      out = np.empty((len(rows), form.shape[1]), form.dtype)
    shard, offset = np.divmod(rows, self._plan.rows_per_shard)
    several = bool(len(rows)) and bool((shard != shard[0]).any())
    for start in range(0, len(rows), _CACHED_ROWS):
      stop = start + _CACHED_ROWS
      self._take(
        site, shard[start:stop], offset[start:stop], out[start:stop], several
      )
    return out

  def _take(self, site, shard, offset, out, several: bool) -> None:
    """A few rows, copied without holding Python's lock for long.

    Where they are of several shards they are gathered shard by shard, and put
    in order while the CPU still caches them.
    """
    order = np.argsort(shard, kind="stable") if several else np.arange(len(out))
    rows = np.empty_like(out) if several else out
    expected = np.empty(len(out), np.uint64)
    cuts = np.flatnonzero(np.diff(shard[order])) + 1
    for begin, end in itertools.pairwise([0, *cuts.tolist(), len(out)]):
      number = int(shard[order[begin]])
      self._shard(site, number).take(
        offset[order[begin:end]], rows[begin:end], expected[begin:end]
      )
    wrong = shards.row_checks(rows) != expected
    if wrong.any():
      first = order[int(np.argmax(wrong))]
      path = self._shard(site, int(shard[first])).path
      raise shards.wrong_row(path, int(offset[first]))
    if several:
      places = np.empty_like(order)
      places[order] = np.arange(len(order))
      np.take(rows, places, axis=0, out=out, mode="clip")


class _LocalHeld:
  """Rows that are gathered when they are taken."""

  def __init__(self, source: LocalRows, site: str, rows: np.ndarray):
    self._source, self._site, self._rows = source, site, rows

  def take(
    self, positions: np.ndarray, out: np.ndarray | None = None
  ) -> np.ndarray:
    """See `Held`."""
    return self._source.take(self._site, self._rows[positions], out)


class RemoteRows:
  """Rows of a store that is elsewhere, by requests for just their bytes."""

  def __init__(self, files: Folder, plan: StorePlan):
    self._files, self._plan = files, plan

  def hold(self, site: str, rows: np.ndarray) -> Held:
    """Fetches rows, several runs at a time, and checks them."""
    wanted, places = np.unique(rows, return_inverse=True)
    form = shards.rows_form(self._plan, site, 0)
    stored = np.empty((len(wanted), form.shape[1]), form.dtype)
    most = max(_REQUEST_BYTES // form.row_bytes, 1)

    def fetch(run: _Run) -> None:
      part = stored[run.first : run.first + run.stop - run.start]
      self._fetch(site, run, part)

    runs = _runs(wanted, self._plan.rows_per_shard, most)
    concurrently(fetch, runs)
    in_order = np.array_equal(places, np.arange(len(wanted)))
    return _RemoteHeld(stored, None if in_order else places)

  def take(
    self, site: str, rows: np.ndarray, out: np.ndarray | None = None
  ) -> np.ndarray:
    """Rows in stored form, [n, D]."""
    return self.hold(site, rows).take(np.arange(len(rows)), out)

  def _fetch(self, site: str, run: _Run, out: np.ndarray) -> None:
    rows = shards.rows_name(site, run.shard)
    form = shards.rows_form(self._plan, site, run.shard)
    out.view(np.uint8).reshape(-1)[:] = self._bytes(rows, form, run)
    name = shards.checks_name(site, run.shard)
    form = shards.checks_form(self._plan, run.shard)
    checks = self._bytes(name, form, run).view("<u8")
    mark = shards.shard_mark(self._plan, site, run.shard)
    wrong = shards.is_wrong(out, checks, mark)
    if wrong.any():
      row = run.start + int(np.argmax(wrong))
      raise shards.wrong_row(self._files.path(rows), row)

  def _bytes(self, name: str, form: shards.NpyForm, run: _Run) -> np.ndarray:
    start, stop = form.span(run.start, run.stop)
    path = self._files.path(name)
    try:
      found = np.frombuffer(self._files.read(name, start, stop), np.uint8)
    except FileNotFoundError as error:
      raise CorruptStoreError(
        f"{path} is missing. {shards.remedy(path)}"
      ) from error
    if len(found) != stop - start:
      raise CorruptStoreError(
        f"{path} ends before byte {stop:,} of {form.bytes:,}."
        f" {shards.remedy(path)}"
      )
    return found


class _RemoteHeld:
  """Rows that were fetched and checked."""

  def __init__(self, stored: np.ndarray, places: np.ndarray | None):
    self._stored, self._places = stored, places

  def take(
    self, positions: np.ndarray, out: np.ndarray | None = None
  ) -> np.ndarray:
    """See `Held`."""
    if self._places is not None:
      positions = self._places[positions]
    return np.take(self._stored, positions, axis=0, out=out, mode="clip")


class _MappedShard:
  """A shard on this machine, open for reading.

  Attributes:
    path: of its rows.
  """

  def __init__(
    self, files: LocalFolder, plan: StorePlan, site: str, shard: int
  ):
    self._forms = {
      files.path(shards.rows_name(site, shard)): shards.rows_form(
        plan, site, shard
      ),
      files.path(shards.checks_name(site, shard)): shards.checks_form(
        plan, shard
      ),
    }
    self.path = files.path(shards.rows_name(site, shard))
    (self._rows, rows), (self._checks, checks) = (
      _map(path, form) for path, form in self._forms.items()
    )
    self._maps = dict(zip(self._forms, (rows, checks), strict=True))
    self._mark = shards.shard_mark(plan, site, shard)

  def will_read(self, runs: Iterable[_Run]) -> None:
    """Tells the system that these rows are wanted soon."""
    if not hasattr(os, "posix_fadvise"):
      return
    with contextlib.ExitStack() as stack:
      files = [
        (stack.enter_context(open(path, "rb")).fileno(), form)
        for path, form in self._forms.items()
      ]
      for run in runs:
        for descriptor, form in files:
          first, last = form.span(run.start, run.stop)
          for begin in range(first, last, _AHEAD_BYTES):
            size = min(_AHEAD_BYTES, last - begin)
            os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_WILLNEED)

  def take(
    self, offsets: np.ndarray, rows: np.ndarray, checks: np.ndarray
  ) -> None:
    """Copies rows and what their checks should be; compares nothing.

    Args:
      offsets: int64 [n], within the shard.
      rows: [n, D] in stored form; gets the rows.
      checks: uint64 [n]; gets what `shards.row_checks(rows)` has to be.

    Raises:
      CorruptStoreError: the file was cut since it was opened; reading beyond
        its end would end the process.
    """
    for path, mapped in self._maps.items():
      if mapped.size() < len(mapped):
        raise CorruptStoreError(
          f"{path} was cut to {mapped.size():,} bytes while it was read."
          f" {shards.remedy(path)}"
        )
    np.take(self._rows, offsets, axis=0, out=rows, mode="clip")
    np.subtract(self._checks[offsets], self._mark, out=checks)


def _map(path: str, form: shards.NpyForm) -> tuple[np.ndarray, mmap.mmap]:
  """Memory-maps a `.npy` file that has to be of exactly this form."""
  try:
    with open(path, "rb") as file:
      found = file.read(len(form.header))
      size = os.fstat(file.fileno()).st_size
      if found == form.header and size == form.bytes:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(mapped, form.dtype, offset=len(found))
        return values.reshape(form.shape), mapped
  except OSError as error:
    raise CorruptStoreError(
      f"{path}: {error}. {shards.remedy(path)}"
    ) from error
  other = "" if found == form.header else ", and another header"
  raise CorruptStoreError(
    f"{path} is not {form.dtype}{list(form.shape)} in {form.bytes:,} bytes: it"
    f" has {size:,} bytes{other}. {shards.remedy(path)}"
  )


class _Run(NamedTuple):
  """Rows start..stop-1 of a shard, the `first`-th of the wanted and on."""

  shard: int
  start: int
  stop: int
  first: int


def _runs(rows: np.ndarray, size: int, most: int | None = None) -> list[_Run]:
  """Consecutive rows, within shards of `size` rows, at most `most` long."""
  if not len(rows):
    return []
  if (np.diff(rows) <= 0).any():
    rows = np.unique(rows)
  cuts = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] % size == 0)) + 1
  runs = []
  for begin, end in itertools.pairwise([0, *cuts.tolist(), len(rows)]):
    for first in range(begin, end, most or end - begin):
      shard, start = divmod(int(rows[first]), size)
      stop = start + min(end - first, most or end - begin)
      runs.append(_Run(shard, start, stop, first))
  return runs


def _most_open() -> int:
  """Shards to keep open: each needs two of the process's descriptors."""
  limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  if limit == resource.RLIM_INFINITY:
    return 4096
  return min(max((limit - 256) // 4, 64), 4096)
