"""A trainer of a simulated service."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from launch.planner.events import Clock
from launch.planner.simulated_server import SimulatedServer


class SimulatedTrainer:
  """Takes chunks from all servers that have rows of them, and computes.

  Attributes:
    finished: when it was done; None: it is not.
    computed: seconds in which it computed, recomputing included.
    away: seconds in which it was preempted.
    preemptions: how many.
    lost: steps that it computed again.
  """

  def __init__(
    self,
    clock: Clock,
    what,
    servers: Sequence[SimulatedServer],
    steps: int,
    chunk: int,
    ahead: int,
    chance: random.Random,
  ):
    """Takes a `simulate.Trainer`; steps, chunk and ahead are of batches."""
    self.finished: float | None = None
    self.computed = self.away = self.lost = 0.0
    self.preemptions = 0
    self._clock, self._what, self._servers = clock, what, servers
    self._steps, self._chunk, self._chance = steps, chunk, chance
    self._chunks = math.ceil(steps / chunk)
    self._ahead = max(1, round(ahead / chunk))
    self._life = 0  # counts preemptions: what was for an earlier one is lost
    self._is_away = False
    self._next = 0  # chunk to compute
    self._since: float | None = None  # when it began to
    self._asked: dict[SimulatedServer, int] = {}  # the chunk asked for next
    self._busy: set[SimulatedServer] = set()  # a chunk is on its way
    self._got: dict[int, int] = {}  # chunk: parts that have come
    for when in what.preempted_at:
      clock.at(when, lambda: self._preempt(self._life))

  def begin(self) -> None:
    """Starts at what was saved, and decides when it will be preempted."""
    self._is_away = False
    mean = self._what.mean_seconds_to_preemption
    if math.isfinite(mean):
      when = self._clock.now + self._chance.expovariate(1 / mean)
      life = self._life
      self._clock.at(when, lambda: self._preempt(life))
    for server in self._servers:
      self._asked[server] = max(self._next, server.owned.start)
      server.attach(self, self._next)
    self._ask()

  def _ask(self) -> None:
    """Asks each server for its next chunk, if that is due."""
    for server in self._servers:
      number, life = self._asked[server], self._life
      due = self._next + self._ahead
      if server in self._busy or number > due:
        continue
      if number >= server.owned.stop:
        continue
      self._busy.add(server)
      server.ask(self, self._receiver(server, number, life))

  def _receiver(self, server: SimulatedServer, number: int, life: int):
    def receive():
      if life != self._life:
        return
      self._busy.discard(server)
      self._asked[server] = number + 1
      self._got[number] = self._got.get(number, 0) + 1
      if number + 1 >= server.owned.stop:
        server.leave(self)
      self._ask()
      self._compute()

    return receive

  def _compute(self) -> None:
    parts = sum(self._next in server.owned for server in self._servers)
    if self._since is not None or self._got.get(self._next, 0) < parts:
      return
    number, life = self._next, self._life
    steps = min(self._chunk, self._steps - number * self._chunk)
    self._since = self._clock.now

    def done():
      if life != self._life:
        return
      self.computed += self._clock.now - self._since
      self._since = None
      del self._got[number]
      self._next += 1
      if self._next == self._chunks:
        self.finished = self._clock.now
        return
      self._ask()
      self._compute()

    self._clock.at(self._clock.now + steps * self._what.step_seconds, done)

  def _preempt(self, life: int) -> None:
    if life != self._life or self._is_away or self.finished is not None:
      return
    self._is_away = True
    steps = float(self._next * self._chunk)
    if self._since is not None:
      self.computed += self._clock.now - self._since
      steps += (self._clock.now - self._since) / self._what.step_seconds
    every = self._what.checkpoint_steps
    saved = int(steps // every * every) // self._chunk
    self._life += 1
    self.preemptions += 1
    self.lost += steps - saved * self._chunk
    self.away += self._what.down_seconds
    self._next, self._since = saved, None
    self._got, self._busy = {}, set()
    for server in self._servers:
      server.detach(self)
    self._clock.at(self._clock.now + self._what.down_seconds, self.begin)
