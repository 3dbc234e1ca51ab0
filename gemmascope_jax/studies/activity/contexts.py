"""The text around rows, with latents' activations on it.

Only the rows that are shown are read and encoded again, each once, however many
latents want it.

Letters: T tokens of a stretch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.activity.entries import active, on_device
from gemmascope_jax.studies.activity.sample import BLOCK


class Contexts:
  """Stretches of text around rows: `want` them, `read` once, then `context`."""

  def __init__(self, sae: SAE, store, site: str, rows: int, length: int):
    """Nothing wanted yet.

    Args:
      sae: of the site.
      store: activations with their tokens.
      site: name of the site.
      rows: rows of the store that were looked at.
      length: T, tokens shown around a row, two thirds of them before it.

    Raises:
      ValueError: a stretch of no token.
    """
    if length < 1:
      raise ValueError(f"context_tokens {length}: expected at least 1")
    self._sae, self._store, self._site = sae, store, site
    self._rows, self._length = rows, length
    self._wanted: dict[int, set[int]] = {}
    self._stretches: dict[int, _Stretch] = {}
    self._values: dict[tuple[int, int], float] = {}

  def want(self, latent: int, rows: np.ndarray) -> None:
    """Announces what will be shown."""
    for row in map(int, rows):
      if row not in self._stretches:
        self._stretches[row] = self._stretch(row)
      for near in self._stretches[row].rows:
        self._wanted.setdefault(int(near), set()).add(int(latent))

  def read(self) -> None:
    """Encodes all rows of all stretches."""
    numbers = np.array(sorted(self._wanted), np.int64)
    sae = on_device(self._sae)
    for start in range(0, len(numbers), BLOCK):
      part = numbers[start : start + BLOCK]
      entries = active(sae, self._store.gather(self._site, part))
      for latent, row, value in zip(*entries[:3], strict=True):
        number = int(part[row])
        if latent in self._wanted[number]:
          self._values[int(latent), number] = float(value)

  def context(self, tokenizer, latent: int, row: int) -> dict[str, Any]:
    """One stretch as `report.latent_results` wants it.

    Args:
      tokenizer: with `pieces`.
      latent: whose activations.
      row: number of the row at the peak, which was wanted for this latent.

    Returns:
      {"window", "pieces", "values", "peak"}; tokens that are no rows have the
      value 0.
    """
    stretch = self._stretches[int(row)]
    tokens = self._store.tokens[stretch.window][stretch.first : stretch.last]
    values = [0.0] * len(tokens)
    for near, position in zip(stretch.rows, stretch.positions, strict=True):
      value = self._values.get((int(latent), int(near)), 0.0)
      values[position - stretch.first] = round(value, 4)
    return {
      "window": stretch.window,
      "pieces": tokenizer.pieces([int(t) for t in tokens]),
      "values": values,
      "peak": stretch.peak - stretch.first,
    }

  def _stretch(self, row: int) -> _Stretch:
    window, peak = map(int, self._store.index(row, row + 1)[0])
    length = len(self._store.tokens[window])
    first = max(0, min(peak - 2 * self._length // 3, length - self._length))
    last = min(first + self._length, length)
    # The stretch has at most so many rows before and after this one.
    low = max(0, row - (peak - first))
    high = min(self._rows, row + (last - peak))
    index = np.asarray(self._store.index(low, high))
    inside = index[:, 0] == window
    inside &= (index[:, 1] >= first) & (index[:, 1] < last)
    rows = low + np.flatnonzero(inside)
    return _Stretch(window, peak, first, last, rows, index[inside, 1])


class _Stretch(NamedTuple):
  """first..last-1 of a window, with the rows there and their positions."""

  window: int
  peak: int
  first: int
  last: int
  rows: np.ndarray
  positions: np.ndarray
