"""Which steps a server has rows in, without looking at each of them."""

from __future__ import annotations

from gemmascope_jax.data.streams.order import Order


class OwnedSteps:
  """The steps whose batches may hold rows of a slice of the store."""

  def __init__(self, order: Order, owned: tuple[int, int]):
    """Args: the order of rows, and the rows [first, stop) of the slice."""
    self._rows, self._batch = order.rows, order.batch_size
    self._first, self._stop = 0, order.rows  # places in an epoch
    if order.shuffle.kind == "bucket":  # else every bucket has rows of all
      size = order.shuffle.bucket_rows
      self._first = owned[0] // size * size
      self._stop = min(-(-owned[1] // size) * size, order.rows)

  def following(self, step: int) -> int:
    """The first step from `step` on that may have rows of the slice."""
    start = step * self._batch
    epoch = max(0, (start - self._stop) // self._rows + 1)
    place = epoch * self._rows + self._first
    return max(step, place // self._batch)
