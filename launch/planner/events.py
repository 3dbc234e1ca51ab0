"""A clock of events, and what is used by one at a time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
  """What happens when, in order; `now` in seconds."""

  def __init__(self):
    self.now = 0.0
    self._events: list[tuple[float, int, Callable[[], None]]] = []
    self._number = itertools.count()

  def at(self, when: float, what: Callable[[], None]) -> None:
    """Calls `what` at that time, after all that was asked for before it."""
    heapq.heappush(self._events, (when, next(self._number), what))

  def step(self) -> bool:
    """Goes to the next event; False if there is none."""
    if not self._events:
      return False
    self.now, _, what = heapq.heappop(self._events)
    what()
    return True


class Line:
  """A disk or a network line: bytes go through it one after the other.

  Attributes:
    busy: seconds in which it was used.
    done: (when, bytes) of all that went through it.
  """

  def __init__(self, clock: Clock, rate: float):
    self._clock, self._rate, self._free = clock, rate, 0.0
    self.busy = 0.0
    self.done: list[tuple[float, float]] = []

  def use(self, size: float, what: Callable[[], None]) -> None:
    """Calls `what` once so many bytes are through."""
    seconds = size / self._rate
    self._free = max(self._clock.now, self._free) + seconds
    self.busy += seconds
    self.done.append((self._free, size))
    self._clock.at(self._free, what)
