"""How often latents fire, with standard errors over windows.

The firing frequency of latent i is the share of counted tokens with f_i > 0
(paper, 4.3). With a_wi the tokens of window w on which it fires and b_w those
that count, it is the ratio R_i = sum_w a_wi / sum_w b_w, whose standard error
(see `estimate`) needs

  sum_w (a_wi - R_i b_w)^2 = sum a^2 - 2 R_i sum a b + R_i^2 sum b^2,

three sums that one pass gives. A window that goes on in the next block is held
open until it ends.

Letters: B rows of a block, M latents, W windows, G groups of windows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from gemmascope_jax.studies.activity import resampling
from gemmascope_jax.studies.activity.entries import Entries
from gemmascope_jax.studies.activity.sample import Block, Sample
from gemmascope_jax.studies.estimate import Estimate, ratio


@dataclasses.dataclass(frozen=True, eq=False)
class Frequencies:
  """How often each latent of one SAE fired.

  Attributes:
    by_group: int64 [G, M], tokens on which it fired.
    group_rows: int64 [G], tokens that count.
    stderr: float64 [M], of `frequency`, over windows; NaN for one window.
    window_active: float64 [W], active latents summed over tokens.
    window_rows: float64 [W], tokens that count.
  """

  by_group: np.ndarray
  group_rows: np.ndarray
  stderr: np.ndarray
  window_active: np.ndarray
  window_rows: np.ndarray

  @functools.cached_property
  def counts(self) -> np.ndarray:
    """int64 [M]: tokens on which each fired."""
    return self.by_group.sum(axis=0)

  @property
  def rows(self) -> int:
    """Tokens that count."""
    return int(self.group_rows.sum())

  @property
  def windows(self) -> int:
    """Windows that have such a token."""
    return int((self.window_rows > 0).sum())

  @property
  def frequency(self) -> np.ndarray:
    """float64 [M]: share of tokens on which each fires."""
    return self.counts / self.rows

  def l0(self) -> Estimate:
    """Active latents a token."""
    return ratio(self.window_active, self.window_rows)

  def weighted(self, weights: np.ndarray) -> np.ndarray:
    """float64 [M]: `frequency` with a weight for each group, float64 [G]."""
    return weights @ self.by_group / max(weights @ self.group_rows, 1)

  def estimate(self, statistic: Callable[[np.ndarray], float]) -> Estimate:
    """A statistic of the frequencies [M], with its standard error."""
    return resampling.estimate(
      lambda weights: statistic(self.weighted(weights)),
      len(self.group_rows),
      self.windows,
    )


class Firing:
  """Counts; see the module."""

  def __init__(self, width: int, sample: Sample):
    """Nothing counted yet, for M = `width` latents."""
    self._by_group = np.zeros((sample.groups, width), np.int64)
    self._group_rows = np.zeros(sample.groups, np.int64)
    self._active = np.zeros(sample.windows, np.float64)
    self._rows = np.zeros(sample.windows, np.float64)
    self._squares = np.zeros(width, np.float64)
    self._cross = np.zeros(width, np.float64)
    self._open = np.zeros(width, np.int64)
    self._open_window, self._open_rows = -1, 0

  def add(self, entries: Entries, block: Block) -> None:
    """Counts a block; blocks come in order."""
    windows, first = block.windows, block.windows[0]
    counted = np.bincount(windows - first)
    self._group_rows[block.group] += len(windows)
    self._by_group[block.group] += np.diff(entries.starts)
    inside = slice(first, first + len(counted))
    self._rows[inside] += counted
    self._active[inside] += np.bincount(
      windows[entries.rows] - first, minlength=len(counted)
    )
    runs = entries.runs(windows)
    if first != self._open_window:
      self._close(first)
    self._hold(runs, first, counted[0])
    last = windows[-1]
    if last != first:
      self._close(last)
      whole = (runs.labels != first) & (runs.labels != last)
      latents, length = runs.latents[whole], runs.lengths[whole]
      weight = counted[runs.labels[whole] - first]
      width = len(self._open)
      self._squares += np.bincount(latents, length**2, width)
      self._cross += np.bincount(latents, length * weight, width)
      self._hold(runs, last, counted[-1])

  def _hold(self, runs, window: int, rows: int) -> None:
    own = runs.labels == window
    self._open[runs.latents[own]] += runs.lengths[own]
    self._open_rows += rows

  def _close(self, following: int) -> None:
    self._squares += self._open.astype(np.float64) ** 2
    self._cross += self._open * float(self._open_rows)
    self._open[:] = 0
    self._open_window, self._open_rows = following, 0

  def finish(self) -> Frequencies:
    """What was counted."""
    self._close(-1)
    total, windows = self._rows.sum(), (self._rows > 0).sum()
    counts = self._by_group.sum(axis=0)
    share = counts / max(total, 1)
    spread = self._squares - 2 * share * self._cross
    spread += share**2 * np.square(self._rows).sum()
    factor = windows / (windows - 1) if windows > 1 else np.nan
    return Frequencies(
      by_group=self._by_group,
      group_rows=self._group_rows,
      stderr=np.sqrt(factor * np.maximum(spread, 0)) / max(total, 1),
      window_active=self._active,
      window_rows=self._rows,
    )
