"""Servers and trainers as events, for what arithmetic does not tell.

A service is one store behind some servers, read by some trainers. Each server
has a disk, a buffer and a network line; it reads its share of the batches in
order, keeps each until every trainer has it, and sends it to each. A trainer
asks a few batches ahead, computes, is preempted now and then, and goes on from
its last checkpoint. The rules are those of `data.serving`: who is a whole buffer
ahead waits for the slowest, but not for one that has taken nothing for
`patience` seconds; what that one missed is read for it alone.

Time moves from event to event; batches are simulated in chunks, so that a run of
a million steps takes seconds.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence

_BINS = 200  # of the time line


@dataclasses.dataclass(frozen=True)
class Trainer:
  """One trainer.

  Attributes:
    step_seconds: of one step, when it does not wait.
    mean_seconds_to_preemption: exponentially distributed; infinite: never.
    down_seconds: until it computes again.
    checkpoint_steps: it goes on from a multiple of so many.
  """

  step_seconds: float
  mean_seconds_to_preemption: float = math.inf
  down_seconds: float = 300.0
  checkpoint_steps: int = 5_000


@dataclasses.dataclass(frozen=True)
class Service:
  """A store, its servers and its trainers.

  Attributes:
    trainers: that read it.
    steps: of each.
    batch_bytes: of one step.
    servers: that share the store.
    disk_rate: of each, bytes a second.
    network_rate: of each, bytes a second.
    buffer_bytes: of each.
    patience: seconds.
    ahead: batches that a trainer asks for in advance.
    bucket_steps: consecutive batches that one server owns; 0: each batch comes
      from all servers evenly (a global shuffle).
  """

  trainers: tuple[Trainer, ...]
  steps: int
  batch_bytes: int
  servers: int = 1
  disk_rate: float = 0.2 * 2**30
  network_rate: float = 1.1 * 2**30
  buffer_bytes: float = 2**30
  patience: float = 30.0
  ahead: int = 4
  bucket_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
  """What came.

  Attributes:
    seconds: until the last trainer was done.
    finished: seconds at which each was.
    computing: share of its time that each computed; the rest it waited for
      batches, or was down.
    lost_steps: of each, computed again after preemptions.
    read: bytes from all disks.
    sent: bytes to all trainers.
    line: (seconds, bytes read per second, bytes sent per second) over time.
  """

  seconds: float
  finished: tuple[float, ...]
  computing: tuple[float, ...]
  lost_steps: tuple[int, ...]
  read: float
  sent: float
  line: tuple[tuple[float, float, float], ...]


def run(service: Service, seed: int = 0, chunk: int | None = None) -> Result:
  """Simulates one service to its end.

  Args:
    service: what to simulate.
    seed: of preemptions.
    chunk: batches in an event; None: about 2,000 events a trainer, and no more
      than a quarter of the buffer.

  Raises:
    ValueError: no trainers, or a number that is not positive.
  """
  _check(service)
  if chunk is None:
    fits = service.buffer_bytes * service.servers / service.batch_bytes / 4
    chunk = max(1, min(math.ceil(service.steps / 2000), int(fits)))
  return _Run(service, random.Random(seed), chunk).to_the_end()


def _check(service: Service) -> None:
  if not service.trainers:
    raise ValueError("a service without trainers: expected at least one")
  for name in ("steps", "batch_bytes", "servers", "disk_rate", "network_rate"):
    if not getattr(service, name) > 0:
      raise ValueError(
        f"{name} is {getattr(service, name)}: expected more than 0"
      )
  if any(not each.step_seconds > 0 for each in service.trainers):
    raise ValueError("step_seconds: expected more than 0")


class _Clock:
  """What happens when, in order."""

  def __init__(self):
    self.now = 0.0
    self._events: list[tuple[float, int, Callable[[], None]]] = []
    self._number = itertools.count()

  def at(self, when: float, what: Callable[[], None]) -> None:
    heapq.heappush(self._events, (when, next(self._number), what))

  def step(self) -> bool:
    if not self._events:
      return False
    self.now, _, what = heapq.heappop(self._events)
    what()
    return True


class _Run:
  def __init__(self, service: Service, chance: random.Random, chunk: int):
    self.service, self.chance, self.chunk = service, chance, chunk
    self.chunks = math.ceil(service.steps / chunk)
    self.clock = _Clock()
    self.traffic: list[tuple[float, float, float]] = []  # when, read, sent
    self.trainers = [
      _TrainerRun(self, index, each)
      for index, each in enumerate(service.trainers)
    ]
    self.servers = [_ServerRun(self, index) for index in range(service.servers)]

  def owners(self, number: int) -> Sequence[int]:
    """The servers that have rows of a chunk."""
    servers, bucket = self.service.servers, self.service.bucket_steps
    if not bucket:
      return range(servers)
    return (number * self.chunk // bucket % servers,)

  def bytes(self, number: int) -> float:
    """Of a chunk, from each of its owners."""
    steps = min(self.chunk, self.service.steps - number * self.chunk)
    return steps * self.service.batch_bytes / len(self.owners(number))

  def to_the_end(self) -> Result:
    for trainer in self.trainers:
      trainer.begin()
    for server in self.servers:
      server.pump()
    while any(each.finished is None for each in self.trainers):
      if not self.clock.step():
        raise AssertionError("all wait for each other")
    seconds = max(each.finished for each in self.trainers)
    return Result(
      seconds,
      tuple(each.finished for each in self.trainers),
      tuple(each.computed / each.finished for each in self.trainers),
      tuple(each.lost for each in self.trainers),
      sum(read for _, read, _ in self.traffic),
      sum(sent for _, _, sent in self.traffic),
      self._line(seconds),
    )

  def _line(self, seconds: float) -> tuple[tuple[float, float, float], ...]:
    width = seconds / _BINS
    read, sent = [0.0] * _BINS, [0.0] * _BINS
    for when, one, other in self.traffic:
      place = min(int(when / width), _BINS - 1)
      read[place] += one / width
      sent[place] += other / width
    return tuple(
      ((place + 0.5) * width, read[place], sent[place])
      for place in range(_BINS)
    )


class _ServerRun:
  def __init__(self, run: _Run, index: int):
    self._run, self._clock = run, run.clock
    self._own = [n for n in range(run.chunks) if index in run.owners(n)]
    self._place = 0  # of the next to read
    self._buffer: dict[int, set[int]] = {}  # chunk -> trainers that have it
    self._waiting: dict[int, list] = {}
    self._disk_free = self._line_free = 0.0
    self._reading = False
    self._taken = [0.0] * len(run.service.trainers)
    self._look_at = math.inf

  def ask(self, trainer: _TrainerRun, number: int, life: int) -> None:
    """A trainer wants a chunk."""
    self._taken[trainer.index] = self._clock.now
    if number in self._buffer:
      self._send(trainer, number, life)
    elif (
      self._place
      and number <= self._own[self._place - 1]
      and (not self._reading or number != self._own[self._place - 1])
    ):
      # It has left the buffer: read for this one alone.
      self._clock.at(
        self._read(number), lambda: self._send(trainer, number, life)
      )
    else:
      self._waiting.setdefault(number, []).append((trainer, life))
      self.pump()

  def pump(self) -> None:
    """Reads on, if there is room."""
    if self._reading or self._place == len(self._own) or not self._has_room():
      return
    number = self._own[self._place]
    self._place += 1
    self._reading = True

    def ready():
      self._reading = False
      self._buffer[number] = set()
      for trainer, life in self._waiting.pop(number, []):
        self._send(trainer, number, life)
      self.pump()

    self._clock.at(self._read(number), ready)

  def _has_room(self) -> bool:
    service = self._run.service
    size = self._run.bytes(self._own[self._place])
    while (
      self._buffer and (len(self._buffer) + 1) * size > service.buffer_bytes
    ):
      oldest = min(self._buffer)
      now = self._clock.now
      # Those that still need it, and have taken something lately.
      lately = [
        self._taken[each.index]
        for each in self._run.trainers
        if each.index not in self._buffer[oldest]
        and each.finished is None
        and each.wants <= oldest
        and now - self._taken[each.index] < service.patience
      ]
      if lately:
        look = min(lately) + service.patience
        if not now < self._look_at < look:
          self._look_at = look
          self._clock.at(look, self.pump)
        return False
      del self._buffer[oldest]
    return True

  def _read(self, number: int) -> float:
    size = self._run.bytes(number)
    start = max(self._clock.now, self._disk_free)
    self._disk_free = start + size / self._run.service.disk_rate
    self._run.traffic.append((self._disk_free, size, 0.0))
    return self._disk_free

  def _send(self, trainer: _TrainerRun, number: int, life: int) -> None:
    if life != trainer.life:
      return
    self._taken[trainer.index] = self._clock.now
    if number in self._buffer:
      self._buffer[number].add(trainer.index)
    size = self._run.bytes(number)
    start = max(self._clock.now, self._line_free)
    self._line_free = start + size / self._run.service.network_rate
    self._run.traffic.append((self._line_free, 0.0, size))
    self._clock.at(self._line_free, lambda: trainer.receive(number, life))
    self.pump()


class _TrainerRun:
  def __init__(self, run: _Run, index: int, what: Trainer):
    self._run, self._clock, self._what = run, run.clock, what
    self.index, self.life = index, 0
    self.finished: float | None = None
    self.computed, self.lost = 0.0, 0
    self.wants = 0  # next chunk to compute
    self._asked = 0
    self._missing: dict[int, int] = {}  # chunk -> parts on their way
    self._computing = False

  def begin(self) -> None:
    """Starts, and says when it will be preempted."""
    mean = self._what.mean_seconds_to_preemption
    if math.isfinite(mean):
      when = self._clock.now + self._run.chance.expovariate(1 / mean)
      life = self.life
      self._clock.at(when, lambda: self._preempt(life))
    self._ask()

  def receive(self, number: int, life: int) -> None:
    """A part of a chunk has come."""
    if life != self.life:
      return
    self._missing[number] -= 1
    self._compute()

  def _ask(self) -> None:
    ahead = max(1, round(self._run.service.ahead / self._run.chunk))
    while self._asked < min(self.wants + 1 + ahead, self._run.chunks):
      number = self._asked
      self._asked += 1
      owners = self._run.owners(number)
      self._missing[number] = len(owners)
      for server in owners:
        self._run.servers[server].ask(self, number, self.life)

  def _compute(self) -> None:
    if self._computing or self._missing.get(self.wants, 1):
      return
    number, life = self.wants, self.life
    steps = min(
      self._run.chunk, self._run.service.steps - number * self._run.chunk
    )
    seconds = steps * self._what.step_seconds
    self._computing = True

    def done():
      if life != self.life:
        return
      self._computing = False
      self.computed += seconds
      del self._missing[number]
      self.wants += 1
      if self.wants == self._run.chunks:
        self.finished = self._clock.now
        for server in self._run.servers:
          server.pump()  # nobody waits for it any more
        return
      self._ask()
      self._compute()

    self._clock.at(self._clock.now + seconds, done)

  def _preempt(self, life: int) -> None:
    if life != self.life or self.finished is not None:
      return
    self.life += 1
    every = max(1, round(self._what.checkpoint_steps / self._run.chunk))
    saved = self.wants // every * every
    self.lost += (self.wants - saved) * self._run.chunk
    self.wants = self._asked = saved
    self._missing, self._computing = {}, False
    self._clock.at(self._clock.now + self._what.down_seconds, self.begin)
