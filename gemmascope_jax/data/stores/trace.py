"""Where rows come from: their document, its window and the position there.

Letters: N windows, T tokens in a window, n rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gemmascope_jax.data.policy import TokenPolicy


@dataclasses.dataclass(frozen=True, eq=False)
class Origins:
  """Where rows come from, one entry a row.

  Attributes:
    windows: int32 [n], which window of tokens.
    positions: int32 [n], in the window; BOS is 0.
    documents: int32 [n], number of the document; -1 for a separator.
    keys: uint64 [n], `Document.key` of the document; 0 for a separator.
  """

  windows: np.ndarray
  positions: np.ndarray
  documents: np.ndarray
  keys: np.ndarray


def trace(
  rows: np.ndarray,
  policy: TokenPolicy,
  row_starts: np.ndarray,
  tokens: np.ndarray,
  documents: np.ndarray,
  keys: np.ndarray,
) -> Origins:
  """Traces rows back.

  Args:
    rows: int64 [n], in any order.
    policy: which positions are rows.
    row_starts: int64 [N + 1], rows before each window.
    tokens: int32 [N, T]; may be memory-mapped, only needed windows are read.
    documents: int32 [N, T]: as `packing.Windows.documents`.
    keys: uint64: as `packing.Windows.keys`.
  """
  window = np.searchsorted(row_starts, rows, side="right") - 1
  wanted, place = np.unique(window, return_inverse=True)
  kept = policy.keep(np.asarray(tokens[wanted]))
  # A window's kept positions, in order, before those that are not.
  by_rank = np.argsort(~kept, axis=1, kind="stable")
  position = by_rank[place, rows - row_starts[window]]
  document = np.asarray(documents[wanted])[place, position]
  known = document >= 0
  key = np.zeros(len(rows), np.uint64)
  key[known] = np.asarray(keys)[document[known]]
  return Origins(
    windows=window.astype(np.int32),
    positions=position.astype(np.int32),
    documents=document.astype(np.int32),
    keys=key,
  )
