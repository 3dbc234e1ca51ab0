"""Memory that is used again."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np

_SMALL = 1 << 18  # bytes
_ALIGNMENT = 64  # bytes; JAX need not copy such an array on the CPU


class Buffers:
  """Memory for batches, used again once nothing refers to it.

  Fresh memory costs as much as filling it: the system zeroes every page. Who
  was given an array may keep it, or a view of it, for as long as they like.
  Small arrays are always new: malloc does as well.

  Attributes:
    keep: the most arrays that wait to be used again.
  """

  def __init__(self, keep: int = 8):
    """Holds nothing yet."""
    self.keep, self._lock = keep, threading.Lock()
    self._buffers: list[np.ndarray] = []

  def take(self, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """An array of this shape; its content is arbitrary."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
      return np.empty(shape, dtype)
    with self._lock:
      for index in range(len(self._buffers)):
        # The list's own reference, and the one that getrefcount is given.
        free = sys.getrefcount(self._buffers[index]) == 2
        if free and self._buffers[index].nbytes >= size + _ALIGNMENT:
          return self._view(self._buffers[index], shape, dtype, size)
      buffer = np.empty(size + _ALIGNMENT, np.uint8)
      self._buffers = [*self._buffers, buffer][-self.keep :]
      return self._view(buffer, shape, dtype, size)

  @staticmethod
  def _view(buffer, shape, dtype, size) -> np.ndarray:
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)
