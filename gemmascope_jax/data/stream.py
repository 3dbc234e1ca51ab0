"""Batches of activations for training.

What a batch holds is a pure function of (seed, step): state is an integer,
resuming is exact, and what came before does not matter. The same interface
stands before a store on disk, a live model or a server.

Shuffling is the paper's (3.1): rows are permuted within buckets of about 10^6;
batches are consecutive slices of the endless sequence of permuted buckets,
epoch after epoch, each epoch permuted anew. Every row comes once an epoch.

Letters: B rows in a batch, D width of the site.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.store import Store

BUCKET_ROWS = 1 << 20  # the paper's "about 10^6"


class ActivationStream(Protocol):
  """What training needs of its data, wherever that comes from.

  Attributes:
    site: name of the site.
    width: D.
    batch_size: B.
    rows: rows in an epoch.
    mean: float64 [D], mean of the rows.
    mean_square_norm: E||x||^2 of the rows; the paper's C is its square root.
    policy: which token positions the rows are.
    fingerprint: of everything that determines the batches.
    model: label of the language model.
    provenance: hashes of model, tokenizer and tokens; JSON-ready.
  """

  site: str
  width: int
  batch_size: int
  rows: int
  mean: np.ndarray
  mean_square_norm: float
  policy: TokenPolicy
  fingerprint: str
  model: str
  provenance: dict[str, Any]

  def batch(self, step: int) -> np.ndarray:
    """Batch number `step`, from 0: float32 [B, D]. Depends on no other call."""

  def iterate(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Endless (step, batch) from step `start`, read ahead."""


class StoreStream:
  """Shuffled batches from one site of a store.

  Memory: `bucket_rows` x 12 bytes for a permutation while it is made (8 after
  that), and in `iterate` (ahead + 2) batches. Rows come through memory maps:
  the bucket being read, D x bucket_rows x item size, is best in the system's
  page cache, but need not fit.

  Attributes:
    store: the store.
    others: see `ActivationStream`.
  """

  def __init__(
    self,
    store: Store,
    site: str,
    batch_size: int,
    seed: int = 0,
    bucket_rows: int = BUCKET_ROWS,
  ):
    """Describes the stream; reads nothing but the store's statistics.

    Args:
      store: an open store.
      site: one of its sites.
      batch_size: B, rows in a batch.
      seed: of the permutations, at least 0.
      bucket_rows: rows that are permuted together.

    Raises:
      ValueError: the store lacks the site, or a number is out of range.
    """
    self.width = store.width(site)
    self.mean, self.mean_square_norm = store.statistics(site)
    if not 1 <= batch_size <= store.rows:
      raise ValueError(
        f"batch_size {batch_size}: expected 1..{store.rows}, the rows of"
        f" {store.root}"
      )
    if bucket_rows < 1 or seed < 0:
      raise ValueError(
        f"bucket_rows {bucket_rows}, seed {seed}: expected at least 1 and 0"
      )
    self.store, self.site, self.batch_size = store, site, batch_size
    self.seed, self.bucket_rows = seed, bucket_rows
    self.rows, self.policy = store.rows, store.policy
    self.model = store.plan.model
    self.provenance = {
      "weights_hash": store.plan.weights_hash,
      "tokenizer": store.plan.tokenizer,
      "tokens": store.plan.tokens,
      "store": store.fingerprint,
    }
    self._lock = threading.Lock()
    self._permuted: tuple[tuple[int, int], np.ndarray] | None = None

  @property
  def fingerprint(self) -> str:
    """Of the store, site, batch size, seed and buckets."""
    return artifacts.fingerprint(
      [
        self.store.fingerprint,
        self.site,
        self.batch_size,
        self.seed,
        self.bucket_rows,
      ]
    )

  def row_numbers(self, step: int) -> np.ndarray:
    """Which rows of the store are in a batch, in order: int64 [B]."""
    if step < 0:
      raise ValueError(f"step {step}: expected at least 0")
    position, missing = step * self.batch_size, self.batch_size
    parts = []
    while missing:
      epoch, row = divmod(position, self.rows)
      bucket, offset = divmod(row, self.bucket_rows)
      part = self._bucket(epoch, bucket)[offset : offset + missing]
      parts.append(part + bucket * self.bucket_rows)
      position, missing = position + len(part), missing - len(part)
    return np.concatenate(parts)

  def batch(self, step: int) -> np.ndarray:
    """Batch number `step`, from 0: float32 [B, D]. Depends on no other call."""
    return self.store.gather(self.site, self.row_numbers(step))

  def iterate(
    self, start: int = 0, ahead: int = 2
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Endless (step, batch), read ahead by a thread.

    The thread ends when the iterator is closed, dropped or fails.

    Args:
      start: the first step.
      ahead: batches that wait, ready, at most.
    """
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(item) -> bool:
      while not stop.is_set():
        try:
          ready.put(item, timeout=0.1)
          return True
        except queue.Full:
          continue
      return False

    def read():
      step = start
      try:
        while put((step, self.batch(step))):
          step += 1
      except BaseException as error:  # noqa: BLE001 - raised by the consumer
        put(error)

    thread = threading.Thread(target=read, name="StoreStream", daemon=True)
    thread.start()
    try:
      while True:
        item = ready.get()
        if isinstance(item, BaseException):
          raise item
        yield item
    finally:
      stop.set()
      thread.join()

  def _bucket(self, epoch: int, bucket: int) -> np.ndarray:
    """The permutation of a bucket: int64 [rows in it]; the last is kept."""
    with self._lock:
      if self._permuted is None or self._permuted[0] != (epoch, bucket):
        start = bucket * self.bucket_rows
        size = min(self.bucket_rows, self.rows - start)
        self.store.will_read(self.site, start, start + size)
        # The raw bits of Philox are the same in every version of numpy, unlike
        # what `Generator.permutation` makes of them.
        bits = np.random.Philox(
          key=[self.seed, 0], counter=[0, 0, epoch, bucket]
        ).random_raw(size)
        order = np.argsort(bits, kind="stable")
        self._permuted = ((epoch, bucket), order)
      return self._permuted[1]
