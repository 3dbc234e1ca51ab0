"""Where a row comes from: its window and its position there."""

from __future__ import annotations

import numpy as np

from gemmascope_jax.data.policy import TokenPolicy


def locate(
  policy: TokenPolicy,
  tokens: np.ndarray,
  row_starts: np.ndarray,
  start: int,
  stop: int,
) -> np.ndarray:
  """Traces rows start..stop-1 back: int32 [stop - start, 2].

  Args:
    policy: which positions are rows.
    tokens: int32 [N, T].
    row_starts: int64 [N + 1], rows before each window.
    start: the first row.
    stop: the row after the last.

  Returns:
    (window, position) of each row.
  """
  if start == stop:
    return np.zeros((0, 2), np.int32)
  first = int(np.searchsorted(row_starts, start, side="right")) - 1
  last = int(np.searchsorted(row_starts, stop, side="left"))
  found = np.argwhere(policy.keep(np.asarray(tokens[first:last])))
  found = found[start - row_starts[first] : stop - row_starts[first]]
  return (found + [first, 0]).astype(np.int32)
