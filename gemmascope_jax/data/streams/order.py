"""In which order rows are trained on: a pure function of seed and position.

An epoch is cut into buckets of about 10^6 rows (Gemma Scope 3.1), and the rows
of a bucket are permuted. What a bucket consists of is the `kind` of shuffle:

    "bucket"  consecutive rows: the paper's shuffle; reads a store from front to
              back
    "global"  blocks of `block_rows` consecutive rows, drawn without replacement
              from the whole store; with block_rows=1 a perfect shuffle, with
              more of them reads that a disk or an object store is good at

Nothing is stored: where row r of epoch e comes is computed, so state is an
integer, and neither processes nor devices nor servers change the order. Every
row comes exactly once an epoch, and each epoch has a permutation of its own.

Memory: 16 bytes for each row of a bucket while it is made.

Letters: B rows in a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

BUCKET_ROWS = 1 << 20  # the paper's "about 10^6"
BLOCK_ROWS = 256
KINDS = ("bucket", "global")
_ROUNDS = 6  # of the Feistel network; 4 are enough to look random


@dataclasses.dataclass(frozen=True)
class Shuffle:
  """How rows are shuffled.

  Attributes:
    seed: at least 0.
    kind: "bucket" (the paper's) or "global".
    bucket_rows: rows that are permuted together.
    block_rows: "global" only: consecutive rows that stay in one bucket.
  """

  seed: int = 0
  kind: str = "bucket"
  bucket_rows: int = BUCKET_ROWS
  block_rows: int = BLOCK_ROWS

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(
        f"shuffle {self.kind!r}: expected one of {', '.join(KINDS)}"
      )
    if not 0 <= self.seed < 2**63:
      raise ValueError(f"seed {self.seed}: expected at least 0, below 2^63")
    for name in ("bucket_rows", "block_rows"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} {getattr(self, name)}: expected at least 1 row"
        )
    if self.kind == "bucket":  # of no effect, so equal shuffles are equal
      object.__setattr__(self, "block_rows", BLOCK_ROWS)
    elif self.bucket_rows % self.block_rows:
      raise ValueError(
        f"bucket_rows {self.bucket_rows}: expected a multiple of block_rows"
        f" {self.block_rows}"
      )

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready form."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, value: dict[str, Any]) -> Shuffle:
    """The inverse of `to_dict`; unknown keys are an error."""
    return cls(**value)


class Piece(NamedTuple):
  """Consecutive positions of one bucket's permutation."""

  epoch: int
  bucket: int
  offset: int
  length: int


class Order:
  """The endless sequence of rows, cut into batches.

  Attributes:
    rows: rows in an epoch.
    batch_size: B.
    shuffle: see `Shuffle`.
  """

  def __init__(self, rows: int, batch_size: int, shuffle: Shuffle):
    """Computes nothing yet.

    Raises:
      ValueError: batch_size is not 1..rows.
    """
    if not 1 <= batch_size <= rows:
      raise ValueError(
        f"batch_size {batch_size}: expected 1..{rows}, the rows there are"
      )
    self.rows, self.batch_size, self.shuffle = rows, batch_size, shuffle
    self.buckets = -(-rows // shuffle.bucket_rows)

  def bucket_size(self, bucket: int) -> int:
    """Rows in a bucket: `bucket_rows`, or less in an epoch's last."""
    size = self.shuffle.bucket_rows
    return min(size, self.rows - bucket * size)

  def after(self, epoch: int, bucket: int) -> tuple[int, int]:
    """The (epoch, bucket) that comes next."""
    return (epoch, bucket + 1) if bucket + 1 < self.buckets else (epoch + 1, 0)

  def pieces(self, step: int, part: slice = slice(None)) -> Iterator[Piece]:
    """Where the rows of a batch, or of a slice of it, come from, in order.

    Raises:
      ValueError: a negative step, or a slice with a stride.
    """
    if step < 0:
      raise ValueError(f"step {step}: expected at least 0")
    first, last, stride = part.indices(self.batch_size)
    if stride != 1:
      raise ValueError(f"part {part}: expected consecutive rows of the batch")
    position, missing = step * self.batch_size + first, last - first
    while missing > 0:
      epoch, row = divmod(position, self.rows)
      bucket, offset = divmod(row, self.shuffle.bucket_rows)
      length = min(missing, self.bucket_size(bucket) - offset)
      yield Piece(epoch, bucket, offset, length)
      position, missing = position + length, missing - length

  def members(self, epoch: int, bucket: int) -> np.ndarray:
    """The rows of a bucket before they are permuted: int64 [rows in it].

    Of long consecutive runs, ascending in each.
    """
    start = bucket * self.shuffle.bucket_rows
    stop = start + self.bucket_size(bucket)
    if self.shuffle.kind == "bucket":
      return np.arange(start, stop, dtype=np.int64)
    return self._globally(epoch, start, stop)

  def permutation(self, epoch: int, bucket: int) -> np.ndarray:
    """The order of a bucket's members: int64 [rows in it]."""
    # The raw bits of Philox are the same in every version of numpy, unlike
    # what `Generator.permutation` makes of them.
    bits = np.random.Philox(
      key=[self.shuffle.seed, 0], counter=[0, 0, epoch, bucket]
    ).random_raw(self.bucket_size(bucket))
    return np.argsort(bits, kind="stable")

  def row_numbers(self, step: int, part: slice = slice(None)) -> np.ndarray:
    """Which rows are in a batch, or in a slice of it, in order: int64 [B].

    Makes the whole bucket; a stream, which keeps it, is faster.
    """
    parts = [np.empty(0, np.int64)]
    for epoch, bucket, offset, length in self.pieces(step, part):
      order = self.permutation(epoch, bucket)[offset : offset + length]
      parts.append(self.members(epoch, bucket)[order])
    return np.concatenate(parts)

  def _globally(self, epoch: int, start: int, stop: int) -> np.ndarray:
    """Rows at the places start..stop-1 of an epoch's sequence of blocks."""
    size = self.shuffle.block_rows
    blocks = -(-self.rows // size)
    network = _Feistel(blocks, self.shuffle.seed, epoch)
    places = np.arange(start, stop, dtype=np.int64)
    # The store's last block may be short: what comes after it moves forward.
    short = blocks * size - self.rows
    if short:
      end = int(network.inverse(np.array([blocks - 1]))[0] + 1) * size - short
      places = np.where(places >= end, places + short, places)
    block, offset = np.divmod(places, size)
    first = int(block[0])  # a bucket's blocks are consecutive
    wanted = network(np.arange(first, int(block[-1]) + 1, dtype=np.int64))
    return wanted[block - first] * size + offset


class _Feistel:
  """A permutation of 0..count-1 that is computed, not stored.

  A Feistel network permutes the 2^2h numbers of two h-bit halves whatever its
  round function is; a result outside the range goes through it again
  ("cycle walking"), which is still a permutation.
  """

  def __init__(self, count: int, seed: int, epoch: int):
    self._count = count
    self._half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    self._mask = np.uint64((1 << self._half) - 1)
    # Another key of Philox than that of the permutations within buckets.
    self._keys = np.random.Philox(
      key=[seed, 1], counter=[0, 0, epoch, 0]
    ).random_raw(_ROUNDS)

  def __call__(self, numbers: np.ndarray) -> np.ndarray:
    """Where each number goes: int64, like `numbers`."""
    return self._walk(numbers, self._forward)

  def inverse(self, numbers: np.ndarray) -> np.ndarray:
    """Where each number comes from."""
    return self._walk(numbers, self._backward)

  def _walk(self, numbers, through) -> np.ndarray:
    found = through(numbers.astype(np.uint64))
    outside = np.flatnonzero(found >= self._count)
    while outside.size:
      again = through(found[outside])
      found[outside] = again
      outside = outside[again >= self._count]
    return found.astype(np.int64)

  def _forward(self, numbers):
    left, right = self._split(numbers)
    for key in self._keys:
      left, right = right, left ^ self._mix(right, key)
    return self._join(left, right)

  def _backward(self, numbers):
    left, right = self._split(numbers)
    for key in self._keys[::-1]:
      left, right = right ^ self._mix(left, key), left
    return self._join(left, right)

  def _split(self, numbers):
    return numbers >> np.uint64(self._half), numbers & self._mask

  def _join(self, left, right):
    return (left << np.uint64(self._half)) | right

  def _mix(self, half, key):
    """The h low bits of SplitMix64's finaliser."""
    x = half + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) & self._mask
