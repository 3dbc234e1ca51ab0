"""Batches of activations for training.

What a batch holds is a pure function of (seed, step), see `order`: state is an
integer, resuming is exact, and what came before does not matter. The same
interface stands before a store on disk, a live model and servers.

Letters: B rows in a batch, D width of the site.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.stores import shards
from gemmascope_jax.data.stores.store_plan import StorePlan
from gemmascope_jax.data.stores.store_reading import Held
from gemmascope_jax.data.streams.buffers import Buffers
from gemmascope_jax.data.streams.order import Order, Shuffle

WHOLE = slice(None)
_READERS = 2  # batches gathered at a time


class ActivationStream(Protocol):
  """What training needs of its data, wherever that comes from.

  Attributes:
    site: name of the site.
    width: D.
    batch_size: B.
    rows: rows in an epoch.
    mean: float64 [D], mean of the rows.
    mean_square_norm: E||x||^2 of the rows; the paper's C is its square root.
    shuffle: the order of rows.
    policy: which token positions the rows are.
    fingerprint: of everything that determines the batches.
    model: label of the language model.
    provenance: hashes of model, tokenizer and tokens; JSON-ready.
    waits_for: what a trainer waits for when no batch is ready: "disk",
      "language model" or "servers".
  """

  site: str
  width: int
  batch_size: int
  rows: int
  mean: np.ndarray
  mean_square_norm: float
  shuffle: Shuffle
  policy: TokenPolicy
  fingerprint: str
  model: str
  provenance: dict[str, Any]
  waits_for: str

  def batch(self, step: int, part: slice = WHOLE) -> np.ndarray:
    """Batch number `step`, from 0: float32 [B, D]. Depends on no other call.

    `part` gives consecutive rows of it, for one process of several.
    """

  def iterate(
    self, start: int = 0, stop: int | None = None, *, part: slice = WHOLE
  ) -> Iterator[tuple[int, np.ndarray]]:
    """(step, batch) from step `start` up to `stop` or for ever, read ahead."""


class RowSource(Protocol):
  """Rows of activations by number: a store, or a live model.

  Attributes:
    rows: rows of each site.
    plan: what determines them.
    policy: which positions they are.
    fingerprint: of everything that determines them and their statistics.
    waits_for: see `ActivationStream`.
  """

  rows: int
  plan: StorePlan
  policy: TokenPolicy
  fingerprint: str
  waits_for: str

  def width(self, site: str) -> int:
    """D of a site."""

  def statistics(self, site: str) -> tuple[np.ndarray, float]:
    """Mean, float64 [D], and mean square norm of a site's rows."""

  def hold(self, site: str, rows: np.ndarray) -> Held:
    """Prepares rows, int64 [n], of long consecutive runs, for reading."""


class StoreStream:
  """Shuffled batches from one site of a store or a live model.

  Memory: two buckets (the one being read and the next), each 16 bytes a row
  and what the source holds for it: nothing for a local store, whose rows come
  through memory maps (a bucket is best in the system's page cache, 9 GiB at
  the paper's 2^20 rows of width 2304, but need not fit); the rows themselves
  for a remote store or a live model. And in `iterate` (ahead + 2) batches.

  Attributes:
    source: the store.
    order: which row comes when.
    owned: rows first..stop-1 of the source that `stored` gives; all of them
      but in a server that owns a slice.
    buffers: memory of batches.
    others: see `ActivationStream`.
  """

  def __init__(
    self,
    source: RowSource,
    site: str,
    batch_size: int,
    shuffle: Shuffle | None = None,
    owned: tuple[int, int] | None = None,
    buckets: int = 2,
  ):
    """Describes the stream; reads nothing but the source's statistics.

    Args:
      source: an open store, or a live model's rows.
      site: one of its sites.
      batch_size: B, rows in a batch.
      shuffle: the order of rows; None: the paper's, with seed 0.
      owned: rows (first, stop) that this process serves; None: all.
      buckets: how many are kept; readers that are far apart need more.

    Raises:
      ValueError: the source lacks the site, or a number is out of range.
    """
    self.source, self.site, self.batch_size = source, site, batch_size
    self.width, self.rows = source.width(site), source.rows
    self.mean, self.mean_square_norm = source.statistics(site)
    self.shuffle = shuffle or Shuffle()
    self.order = Order(source.rows, batch_size, self.shuffle)
    self.owned = (0, source.rows) if owned is None else owned
    self.policy, self.model = source.policy, source.plan.model
    self.dtype = shards.stored_dtype(source.plan.dtype)
    self.fingerprint, self.provenance = identity(
      source.plan, source.fingerprint, site, batch_size, self.shuffle
    )
    self.waits_for = source.waits_for
    self._lock = threading.Lock()
    self._buckets: collections.OrderedDict[
      tuple[int, int], concurrent.futures.Future
    ] = collections.OrderedDict()
    self._keep, self.buffers = buckets, Buffers()

  def stored(
    self, step: int, part: slice = WHOLE
  ) -> tuple[np.ndarray, np.ndarray]:
    """A batch's owned rows, as they are stored.

    Args:
      step: from 0.
      part: consecutive rows of the batch.

    Returns:
      positions in the batch, int64 [k], ascending, and the rows [k, D],
      float32 or the bits of bfloat16 as uint16.
    """
    found, start = [], part.indices(self.batch_size)[0]
    for piece in self.order.pieces(step, part):
      bucket = self._bucket(piece.epoch, piece.bucket)
      chosen = bucket.order[piece.offset : piece.offset + piece.length]
      mine = bucket.mine(chosen)
      where = np.flatnonzero(mine) if mine is not None else None
      inside = chosen if where is None else bucket.place[chosen[where]]
      count = len(inside)
      found.append((start, where, count, bucket, inside))
      start += piece.length
    positions = np.concatenate(
      [
        np.arange(begin, begin + count) if where is None else begin + where
        for begin, where, count, _, _ in found
      ]
      or [np.empty(0, np.int64)]
    )
    rows = self.buffers.take((len(positions), self.width), self.dtype)
    begin = 0
    for _, _, count, bucket, inside in found:
      if count:
        bucket.held.take(inside, out=rows[begin : begin + count])
      begin += count
    return positions, rows

  def row_numbers(self, step: int, part: slice = WHOLE) -> np.ndarray:
    """Which rows of the source are in a batch, in order: int64 [B]."""
    parts = [np.empty(0, np.int64)]
    for epoch, number, offset, length in self.order.pieces(step, part):
      bucket = self._bucket(epoch, number)
      parts.append(bucket.members[bucket.order[offset : offset + length]])
    return np.concatenate(parts)

  def batch(self, step: int, part: slice = WHOLE) -> np.ndarray:
    """Batch number `step`, from 0: float32 [B, D]. Depends on no other call.

    Args:
      step: from 0.
      part: consecutive rows of the batch, for one process of several.
    """
    return shards.decode(self.stored(step, part)[1])

  def iterate(
    self,
    start: int = 0,
    stop: int | None = None,
    *,
    part: slice = WHOLE,
    ahead: int = 2,
  ) -> Iterator[tuple[int, np.ndarray]]:
    """(step, batch), read ahead by threads.

    The threads end when the iterator is closed, dropped or fails.

    Args:
      start: the first step.
      stop: the step after the last; None: there is none.
      part: consecutive rows of each batch, for one process of several.
      ahead: batches that wait, ready or in the making, at most.
    """
    pool = concurrent.futures.ThreadPoolExecutor(
      _READERS, thread_name_prefix="StoreStream"
    )
    made: collections.deque = collections.deque()
    try:
      for step in (
        itertools.count(start) if stop is None else range(start, stop)
      ):
        last = step + ahead if stop is None else min(step + ahead, stop - 1)
        for number in range(step + len(made), last + 1):
          made.append(pool.submit(self.batch, number, part))
          self.read_ahead(number, stop)
        batch = made.popleft().result()
        yield step, batch
        del batch  # so that its memory can be used again
    finally:
      pool.shutdown(wait=True, cancel_futures=True)

  def read_ahead(self, step: int, stop: int | None = None) -> None:
    """Prepares the next bucket in the background once half of one is read.

    Args:
      step: the batch that is being read.
      stop: the step after the last that will be read; None: no end.
    """
    for epoch, bucket, offset, length in self.order.pieces(step):
      following = self.order.after(epoch, bucket)
      size = self.order.bucket_size(bucket)
      start = following[0] * self.rows + following[1] * self.shuffle.bucket_rows
      if offset + length > size / 2 and (
        stop is None or start < stop * self.batch_size
      ):
        self._bucket(*following, wait=False)

  def _bucket(self, epoch: int, number: int, wait: bool = True) -> Any:
    """A bucket, made once however many threads ask; the last few are kept."""
    key = (epoch, number)
    with self._lock:
      future = self._buckets.get(key)
      making = future is None
      if making:
        future = self._buckets[key] = concurrent.futures.Future()
      self._buckets.move_to_end(key)
      while len(self._buckets) > self._keep:
        self._buckets.popitem(last=False)
    if making and wait:
      self._make(key, future)
    elif making:
      threading.Thread(
        target=self._make, args=(key, future), name="bucket", daemon=True
      ).start()
    return future.result() if wait else None

  def _make(self, key, future) -> None:
    try:
      future.set_result(self._make_bucket(*key))
    except BaseException as error:  # noqa: BLE001 - raised by who waits
      with self._lock:
        self._buckets.pop(key, None)  # the next call tries again
      future.set_exception(error)

  def _make_bucket(self, epoch: int, number: int) -> _Bucket:
    members = self.order.members(epoch, number)
    first, stop = self.owned
    mine = None
    held = members
    if not (first <= members.min() and members.max() < stop):
      mine = (members >= first) & (members < stop)
      held = members[mine]
    return _Bucket(
      members=members,
      order=self.order.permutation(epoch, number),
      held=self.source.hold(self.site, held),
      owned=mine,
    )


def identity(
  plan: StorePlan,
  source: str,
  site: str,
  batch_size: int,
  shuffle: Shuffle,
) -> tuple[str, dict[str, Any]]:
  """`fingerprint` and `provenance` of a stream, wherever its batches come from.

  Args:
    plan: what determines the rows.
    source: fingerprint of their source.
    site: the site.
    batch_size: B.
    shuffle: the order of rows.
  """
  fingerprint = artifacts.fingerprint(
    [source, site, batch_size, shuffle.to_dict()]
  )
  return fingerprint, {
    "weights_hash": plan.weights_hash,
    "tokenizer": plan.tokenizer,
    "tokens": plan.tokens,
    "dtype": plan.dtype,
    "store": source,
  }


class _Bucket:
  """Rows that are permuted together, ready to be read.

  Attributes:
    members: the row numbers, int64 [n].
    order: their permutation.
    held: the owned ones.
    place: where a member is among the owned ones.
  """

  def __init__(self, members, order, held, owned):
    self.members, self.order, self.held = members, order, held
    self._owned = owned
    self.place = None if owned is None else np.cumsum(owned) - 1

  def mine(self, chosen: np.ndarray) -> np.ndarray | None:
    """Which of these members are owned; None: all."""
    return None if self._owned is None else self._owned[chosen]
