"""How strongly latents fire: mean, maximum and histogram, in one pass.

The histogram's range is not known before the end, so each latent has one from
0 to a power of two above all that it has shown; when it shows more, the range
doubles and neighbouring bins are joined. Bins of the smaller range end where
bins of the larger do, so nothing is approximate: the result is that of the
final range, whatever the blocks were.

Letters: M latents, P of them present in a block.
"""

from __future__ import annotations

import numpy as np

from gemmascope_jax.studies.activity.entries import Entries

_DOUBLINGS = 5
_BINS = 1 << _DOUBLINGS
_NEVER = -10_000  # exponent of a range that nothing has needed


class Values:
  """Sums of activations; see the module.

  Attributes:
    counts: int64 [M], rows on which each latent fired.
    sums: float64 [M], of its activations.
    squares: float64 [M], of their squares.
    maximum: float32 [M]; 0 if it never fired.
  """

  def __init__(self, width: int):
    """Nothing seen yet, for M = `width` latents."""
    self.counts = np.zeros(width, np.int64)
    self.sums = np.zeros(width, np.float64)
    self.squares = np.zeros(width, np.float64)
    self.maximum = np.zeros(width, np.float32)
    self._exponent = np.full(width, _NEVER, np.int32)
    self._bins = np.zeros((width, _BINS), np.int32)

  def add(self, entries: Entries) -> None:
    """Adds a block."""
    if not len(entries.latents):
      return
    width, values = len(self.counts), entries.values.astype(np.float64)
    present = entries.present
    self.counts += np.diff(entries.starts)
    self.sums += np.bincount(entries.latents, values, width)
    self.squares += np.bincount(entries.latents, values**2, width)
    top = np.maximum.reduceat(entries.values, entries.starts[present])
    self.maximum[present] = np.maximum(self.maximum[present], top)
    self._widen(present, np.frexp(top)[1])
    scale = _DOUBLINGS - self._exponent[entries.latents]
    place = np.ldexp(values, scale).astype(np.int64)
    rank = np.repeat(np.arange(len(present)), np.diff(entries.starts)[present])
    found = np.bincount(rank * _BINS + place, minlength=len(present) * _BINS)
    self._bins[present] += found.reshape(-1, _BINS).astype(np.int32)

  def _widen(self, present: np.ndarray, needed: np.ndarray) -> None:
    """Doubles the ranges of latents that need it."""
    missing = np.maximum(needed - self._exponent[present], 0)
    doublings = np.minimum(missing, _DOUBLINGS)
    for times in np.unique(doublings[doublings > 0]):
      which = present[doublings == times]
      joined = self._bins[which].reshape(len(which), -1, 1 << times)
      self._bins[which] = 0
      self._bins[which, : _BINS >> times] = joined.sum(axis=2)
    self._exponent[present] += missing

  @property
  def mean(self) -> np.ndarray:
    """float64 [M], of the rows on which each fires; 0 if it never does."""
    return self.sums / np.maximum(self.counts, 1)

  def histogram(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of a latent's activations, and edges from 0 to above the maximum.

    Returns:
      counts int64 [b] and edges float64 [b + 1] with 17 to 32 bins of one
      width; no bins for a latent that never fired.
    """
    if not self.counts[latent]:
      return np.zeros(0, np.int64), np.zeros(1)
    counts = self._bins[latent].astype(np.int64)
    used = int(np.flatnonzero(counts)[-1]) + 1
    width = np.ldexp(1.0, self._exponent[latent] - _DOUBLINGS)
    return counts[:used], width * np.arange(used + 1)
