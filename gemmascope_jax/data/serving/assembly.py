"""Batches in the making, of rows that come from several servers.

Letters: B rows of a batch, or of the part of it that is wanted; D width.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

_LOOK = 1.0  # seconds between looks at what a batch is waiting for


class Assembly:
  """A few batches from some step on; rows are copied into place as they come.

  One thread for each server adds rows, another takes batches. Rows that come
  twice, since a connection was lost between, are rows that came once.
  """

  def __init__(self, start: int, size: int, width: int, ahead: int, buffers):
    """Args: the first step, B, D, batches beyond the first, and their memory.

    `buffers.take(shape, dtype)` gives the memory of a batch.
    """
    self._first, self._size, self._width = start, size, width
    self._ahead, self._buffers = ahead, buffers
    self._changed = threading.Condition()
    self._slots: dict[int, _Slot] = {}
    self._error: Exception | None = None
    self.closed = False

  def add(
    self, step: int, places: slice | np.ndarray, rows: np.ndarray
  ) -> bool:
    """Puts rows into a batch; waits until that batch is due.

    Args:
      step: of the batch.
      places: where in the batch.
      rows: [k, D] in stored form.

    Returns:
      False once nothing more is wanted.
    """
    with self._changed:
      while step > self._first + self._ahead and not self.closed:
        self._changed.wait()
      if self.closed:
        return False
      if step < self._first:
        return True  # was whole, and is gone
      slot = self._slots.get(step)
      if slot is None:
        shape = (self._size, self._width)
        array = self._buffers.take(shape, np.dtype(np.float32))
        slot = self._slots[step] = _Slot(array)
    _decode(rows, slot.rows, places)
    with self._changed:
      slot.there[places] = True
      if slot.there.all():
        self._changed.notify_all()
      return not self.closed

  def take(
    self, step: int, while_waiting: Callable[[float], None]
  ) -> np.ndarray:
    """The batch of a step, float32 [B, D], once it is whole.

    Args:
      step: the first step, then one more each time.
      while_waiting: called about once a second, with the seconds waited.

    Raises:
      the error that `fail` was given.
    """
    start = time.monotonic()
    while True:
      with self._changed:
        slot = self._slots.get(step)
        if slot is not None and slot.there.all():
          del self._slots[step]
          self._first = step + 1
          self._changed.notify_all()
          return slot.rows
        if self._error is not None:
          raise self._error
        if self._changed.wait(_LOOK):
          continue
      while_waiting(time.monotonic() - start)

  def fail(self, error: Exception) -> None:
    """Makes `take` raise once what is whole was taken."""
    with self._changed:
      self._error = self._error or error
      self._changed.notify_all()

  def close(self) -> None:
    """Nothing more is wanted."""
    with self._changed:
      self.closed = True
      self._changed.notify_all()

  def pause(self, seconds: float) -> None:
    """Sleeps, but not beyond `close`."""
    deadline = time.monotonic() + seconds
    with self._changed:
      while not self.closed and (left := deadline - time.monotonic()) > 0:
        self._changed.wait(left)


class _Slot:
  """A batch in the making, and which of its rows are there."""

  def __init__(self, rows: np.ndarray):
    self.rows = rows
    self.there = np.zeros(len(rows), bool)


def _decode(
  stored: np.ndarray, out: np.ndarray, places: slice | np.ndarray
) -> None:
  """Stored rows as float32 into their places."""
  if stored.dtype == np.uint16:
    stored = stored.view(ml_dtypes.bfloat16)
  out[places] = stored
