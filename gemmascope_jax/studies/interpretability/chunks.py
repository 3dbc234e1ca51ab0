"""A store's windows cut into contexts of equal length.

Letters: N windows, C contexts, T tokens in a context, D width of the site.
"""

from __future__ import annotations

import numpy as np

_ROWS_AT_ONCE = 1 << 20


class Chunks:
  """Contexts of a store by number: window by window, in order.

  The last tokens of a window that fill no context are left out, and so are
  contexts of which less than half of the tokens have a row.

  Args:
    store: activations with their tokens.
    site: one of its sites.
    length: T.
    rows: only the first rows are used; None: all.

  Raises:
    ValueError: no context of that length has enough rows.
  """

  def __init__(self, store, site: str, length: int, rows: int | None = None):
    rows = min(rows or store.rows, store.rows)
    windows, window = store.tokens.shape
    each = window // length
    if not each:
      raise ValueError(
        f"contexts of {length} tokens: {store.root} has windows of {window};"
        " use shorter contexts"
      )
    counts = np.zeros(windows * each, np.int64)
    starts = np.zeros(windows * each, np.int64)
    for start in range(0, rows, _ROWS_AT_ONCE):
      stop = min(start + _ROWS_AT_ONCE, rows)
      chunk = _chunk_of(store.index(start, stop), length, each)
      here = np.flatnonzero(chunk >= 0)
      numbers, first, count = np.unique(
        chunk[here], return_index=True, return_counts=True
      )
      new = counts[numbers] == 0
      starts[numbers[new]] = start + here[first[new]]
      counts[numbers] += count
    self._store, self.site, self.length = store, site, length
    self._each = each
    self._numbers = np.flatnonzero(2 * counts >= length)
    if not len(self._numbers):
      raise ValueError(
        f"no context of {length} tokens in {rows} rows of {store.root} has"
        " rows for half of them: use more rows"
      )
    self._starts = starts[self._numbers]
    self._counts = counts[self._numbers]

  def __len__(self) -> int:
    return len(self._numbers)

  @property
  def rows(self) -> int:
    """Counted positions of all contexts."""
    return int(self._counts.sum())

  def windows(self) -> np.ndarray:
    """int64 [C]: the window of each context."""
    return self._numbers // self._each

  def tokens(self, which: np.ndarray) -> np.ndarray:
    """int32 [n, T]: the tokens of some contexts."""
    window, place = np.divmod(self._numbers[which], self._each)
    columns = place[:, None] * self.length + np.arange(self.length)
    return np.asarray(self._store.tokens[window[:, None], columns], np.int32)

  def read(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations of the site in some contexts.

    Args:
      which: int [n], numbers of contexts.

    Returns:
      float32 [n, T, D], 0 where there is no row; bool [n, T], where there is.
    """
    counts = self._counts[which]
    owner = np.repeat(np.arange(len(which)), counts)
    within = np.arange(len(owner)) - np.repeat(
      np.cumsum(counts) - counts, counts
    )
    rows = self._starts[which][owner] + within
    positions = self._store.trace(rows).positions % self.length
    x = np.zeros(
      (len(which), self.length, self._store.width(self.site)), np.float32
    )
    keep = np.zeros(x.shape[:2], bool)
    x[owner, positions] = self._store.gather(self.site, rows)
    keep[owner, positions] = True
    return x, keep


def _chunk_of(index: np.ndarray, length: int, each: int) -> np.ndarray:
  """The context of (window, position) pairs; -1 beyond the last whole one."""
  place = index[:, 1] // length
  chunk = index[:, 0].astype(np.int64) * each + place
  return np.where(place < each, chunk, -1)
