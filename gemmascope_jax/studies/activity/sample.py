"""Rows that a study looks at, in blocks that know where they come from.

Windows (the sequences, the unit of every standard error) are put into up to 16
groups of neighbours; a block never holds rows of two groups, so that sums can
be kept by group and any statistic's standard error found by drawing groups,
see `resampling`. Neighbours, because they may share a document.

Letters: B rows of a block, D width of the site, W windows.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import tqdm

from gemmascope_jax.sae.sae import SAE

BLOCK = 8_192
_GROUPS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
  """Some rows that follow each other.

  Attributes:
    start: number of the first in the store.
    x: float32 [B, D].
    windows: int64 [B], counted from the sample's first window; increasing.
    positions: int64 [B], in the window.
    tokens: int64 [B], ids.
    group: of its windows.
  """

  start: int
  x: np.ndarray
  windows: np.ndarray
  positions: np.ndarray
  tokens: np.ndarray
  group: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """The first rows of a store, at one site.

  Attributes:
    store: a `Store` or anything that reads like one.
    site: name of the site.
    rows: how many rows.
    first_window: number of the store's window that is 0 here.
    windows: W, windows that the rows are from.
    bounds: first row of each group, and after the last group `rows`.
  """

  store: object
  site: str
  rows: int
  first_window: int
  windows: int
  bounds: tuple[int, ...]

  @classmethod
  def of(cls, store, site: str, rows: int | None = None) -> Sample:
    """The first `rows` rows; None: all.

    Raises:
      ValueError: no rows are asked for.
    """
    if rows is not None and rows < 1:
      raise ValueError(f"rows {rows}: expected at least 1, or None for all")
    rows = min(rows or store.rows, store.rows)
    window = lambda row: int(store.index(row, row + 1)[0, 0])
    first = window(0)
    windows = window(rows - 1) - first + 1
    groups = min(_GROUPS, windows)
    starts = [first + -(-g * windows // groups) for g in range(groups)]
    inside = range(rows)
    bounds = [bisect.bisect_left(inside, w, key=window) for w in starts]
    return cls(store, site, rows, first, windows, (*bounds, rows))

  @property
  def groups(self) -> int:
    """How many groups of windows."""
    return len(self.bounds) - 1

  def blocks(
    self, what: str, block: int = BLOCK, progress: bool = True
  ) -> Iterator[Block]:
    """All rows in order.

    Args:
      what: the progress bar says this.
      block: rows of one, at most.
      progress: show a progress bar.

    Raises:
      ValueError: a block of no rows.
    """
    if block < 1:
      raise ValueError(f"block {block}: expected at least 1 row")
    with tqdm.tqdm(
      total=self.rows,
      desc=what,
      unit="row",
      unit_scale=True,
      disable=not progress or jax.process_index() > 0,
    ) as bar:
      for group, end in enumerate(self.bounds[1:]):
        for start in range(self.bounds[group], end, block):
          stop = min(start + block, end)
          yield self._read(start, stop, group)
          bar.update(stop - start)

  def _read(self, start: int, stop: int, group: int) -> Block:
    index = np.asarray(self.store.index(start, stop), np.int64)
    windows, positions = index[:, 0], index[:, 1]
    first = windows[0]
    near = np.asarray(self.store.tokens[first : windows[-1] + 1])
    return Block(
      start=start,
      x=self.store.read(self.site, start, stop),
      windows=windows - self.first_window,
      positions=positions,
      tokens=near[windows - first, positions].astype(np.int64),
      group=group,
    )

  def require_saes(self, saes: Mapping[str, SAE]) -> None:
    """Checks that SAEs read this site.

    Raises:
      ValueError: no SAEs, or one of another site or width; names it.
    """
    if not saes:
      raise ValueError("no SAEs: expected at least one")
    width = self.store.width(self.site)
    for name, sae in saes.items():
      if sae.config.site not in (None, self.site):
        raise ValueError(
          f"SAE {name!r} was trained at site {sae.config.site}, not"
          f" {self.site}: give SAEs of one site"
        )
      if sae.site_width != width:
        raise ValueError(
          f"SAE {name!r} reads activations of width {sae.site_width}, but"
          f" {self.site} of {self.store.root} has width {width}: it is of"
          " another model or site"
        )
