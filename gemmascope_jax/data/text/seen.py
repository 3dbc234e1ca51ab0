"""A set of 64-bit keys that only grows, in little memory."""

from __future__ import annotations

import numpy as np

_RECENT = 1 << 16


class Seen:
  """Which documents there were already, by their keys.

  The latest keys are in a Python set; the others in sorted runs of sizes that
  at least double from one to the next, so that they are looked up by bisection
  in a few runs and each key is sorted a logarithmic number of times.

  Memory: 8 bytes a key, 16 while the runs are merged; besides, about 6 MiB at
  most for the latest keys, whatever their number. A billion documents take 8
  GiB (16 for moments), where a set of Python's would take about 90.

  Args:
    recent: how many keys the Python set holds.
  """

  def __init__(self, recent: int = _RECENT):
    self._limit = recent
    self._recent: set[int] = set()
    self._runs: list[np.ndarray] = []  # uint64, long ones first

  def add(self, key: int) -> bool:
    """Adds a key, from 0 to 2**64 - 1.

    Returns:
      Whether it is new.
    """
    if key in self._recent:
      return False
    exact = np.uint64(key)
    for run in self._runs:
      place = run.searchsorted(exact)
      if place < len(run) and run[place] == exact:
        return False
    self._recent.add(key)
    if len(self._recent) >= self._limit:
      self._settle()
    return True

  def __len__(self) -> int:
    return len(self._recent) + sum(map(len, self._runs))

  def _settle(self) -> None:
    run = np.fromiter(self._recent, np.uint64, len(self._recent))
    self._recent.clear()
    run.sort()
    while self._runs and len(self._runs[-1]) < 2 * len(run):
      run = np.concatenate((self._runs.pop(), run))
      run.sort()
    self._runs.append(run)
