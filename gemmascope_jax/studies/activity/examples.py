"""Rows on which latents fire: the strongest, and some at random.

Both keep, of each latent, the few entries with the greatest key: the
activation, or a random number that depends on row, latent and seed alone, so
that the sample is uniform and the same whatever the blocks were. M latents
with k rows each take 16 M k bytes.

Letters: M latents, k rows kept of each, n candidates.
"""

from __future__ import annotations

import numpy as np

from gemmascope_jax.studies.activity.entries import Entries
from gemmascope_jax.studies.activity.sample import Block

_EMPTY = -1


class _Best:
  """The k candidates of each latent with the greatest keys.

  Attributes:
    keys: float32 [M, k], decreasing; 0 where there is none.
    values: float32 [M, k], activations.
    rows: int64 [M, k], numbers in the store; -1 where there is none.
  """

  def __init__(self, width: int, count: int):
    if count < 1:
      raise ValueError(f"{count} rows a latent: expected at least 1")
    self.keys = np.zeros((width, count), np.float32)
    self.values = np.zeros((width, count), np.float32)
    self.rows = np.full((width, count), _EMPTY, np.int64)

  def _offer(self, latents, keys, values, rows) -> None:
    """Takes what is better; of equal keys, that with the lower row.

    Args:
      latents: [n], increasing.
      keys: float32 [n], positive.
      values: float32 [n].
      rows: int64 [n], above all that were offered before.
    """
    better = keys > self.keys[latents, -1]
    if not better.any():
      return
    count = self.keys.shape[1]
    latents, keys, values, rows = (
      a[better] for a in (latents, keys, values, rows)
    )
    order = np.lexsort((-keys, latents))
    present, begins = np.unique(latents, return_index=True)
    place = np.searchsorted(present, latents)
    rank = np.arange(len(latents)) - begins[place]
    first = rank < count
    order, place, rank = order[first], place[first], rank[first]
    shape = (len(present), count)
    new = (
      np.zeros(shape, np.float32),
      np.zeros(shape, np.float32),
      np.full(shape, _EMPTY, np.int64),
    )
    for table, given in zip(new, (keys, values, rows), strict=True):
      table[place, rank] = given[order]
    held = (self.keys, self.values, self.rows)
    joined = [
      np.concatenate([table[present], more], axis=1)
      for table, more in zip(held, new, strict=True)
    ]
    best = np.argsort(-joined[0], axis=1, kind="stable")[:, :count]
    for table, both in zip(held, joined, strict=True):
      table[present] = np.take_along_axis(both, best, axis=1)


class Strongest(_Best):
  """Each latent's strongest rows, at most one of a window."""

  def __init__(self, width: int, count: int):
    """Nothing seen yet; keeps `count` rows of each of `width` latents."""
    super().__init__(width, count)
    self._window, self._window_start = -1, 0

  def add(self, entries: Entries, block: Block) -> None:
    """Adds a block; blocks come in order."""
    windows = block.windows
    if windows[0] != self._window:
      self._window_start = block.start
    if len(entries.latents):
      runs = entries.runs(windows)
      peaks = np.maximum.reduceat(entries.values, runs.firsts)
      run = np.repeat(np.arange(len(peaks)), runs.lengths)
      places = np.flatnonzero(entries.values == peaks[run])
      places = places[np.unique(run[places], return_index=True)[1]]
      self._again(runs.latents, peaks, runs.labels == windows[0])
      rows = block.start + entries.rows[places].astype(np.int64)
      self._offer(runs.latents, peaks, peaks, rows)
    if windows[-1] != windows[0]:
      begins = np.searchsorted(windows, windows[-1])
      self._window_start = block.start + int(begins)
    self._window = windows[-1]

  def _again(self, latents, peaks, first) -> None:
    """Settles a window that goes on: its old peak goes, or its new one."""
    # A place that is emptied is filled by the `_offer` that follows: the new
    # peak is greater than what was there.
    own = np.flatnonzero(first)
    held = self.rows[latents[own]] >= self._window_start
    for column in range(held.shape[1]):
      again = own[held[:, column]]
      which = latents[again]
      lower = self.keys[which, column] >= peaks[again]
      peaks[again[lower]] = 0
      gone = which[~lower]
      self.keys[gone, column] = 0
      self.values[gone, column] = 0
      self.rows[gone, column] = _EMPTY


class Random(_Best):
  """A uniform sample of the rows on which each latent fires."""

  def __init__(self, width: int, count: int, seed: int = 0):
    """Nothing seen yet; keeps `count` rows of each of `width` latents."""
    super().__init__(width, count)
    self._seed = seed

  def add(self, entries: Entries, block: Block) -> None:
    """Adds a block; blocks come in order."""
    rows = block.start + entries.rows.astype(np.int64)
    keys = _random(rows, entries.latents, self._seed)
    self._offer(entries.latents, keys, entries.values, rows)


def _random(rows, latents, seed: int) -> np.ndarray:
  """float32 [n] in (0, 1], of each pair and the seed (splitmix64)."""
  u = np.uint64
  with np.errstate(over="ignore"):
    x = rows.astype(u) * u(0x9E3779B97F4A7C15)
    x ^= (latents.astype(u) + u(seed) * u(0x632BE59BD9B4E019)) * u(
      0xD1B54A32D192ED03
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
      x = (x ^ (x >> u(shift))) * u(factor)
    x ^= x >> u(31)
  return ((x >> u(40)) + u(1)).astype(np.float32) / np.float32(1 << 24)
