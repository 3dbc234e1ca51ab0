"""Servers and trainers as events, for what arithmetic does not tell.

A service is one store behind some servers, read by some trainers. The rules are
those of `data.serving.ready`: a server reads ahead of the fastest trainer into a
bounded buffer; who is a whole buffer ahead of another waits for it, but not for
one that has taken nothing for `patience` seconds, nor longer than that for one
that has fallen out of the buffer, whose batches are read for it alone.

Batches go in chunks, so that a run of a million steps takes seconds.
"""

from __future__ import annotations

import dataclasses
import math
import random

from launch.planner.events import Clock
from launch.planner.simulated_server import SimulatedServer
from launch.planner.simulated_trainer import SimulatedTrainer

_BINS = 200  # of the time line
_CHUNKS = 2_000  # of a run, about


@dataclasses.dataclass(frozen=True)
class Trainer:
  """One trainer: a run, whose members share its batches.

  Attributes:
    step_seconds: of one step, when it does not wait.
    mean_seconds_to_preemption: of an exponential distribution; infinite: never.
    down_seconds: until it computes again.
    checkpoint_steps: it goes on from a multiple of so many.
    preempted_at: seconds after the start at which it is preempted as well.
  """

  step_seconds: float
  mean_seconds_to_preemption: float = math.inf
  down_seconds: float = 300.0
  checkpoint_steps: int = 5_000
  preempted_at: tuple[float, ...] = ()

  def __post_init__(self):
    """Raises `ValueError` for what no trainer is."""
    _positive(self, "step_seconds", "mean_seconds_to_preemption")
    _positive(self, "checkpoint_steps")
    if not 0 <= self.down_seconds < math.inf:
      raise ValueError(
        f"down_seconds is {self.down_seconds}: expected at least 0"
      )


@dataclasses.dataclass(frozen=True)
class Server:
  """One server.

  Attributes:
    disk_rate: bytes a second.
    network_rate: bytes a second, to all trainers together.
    buffer_bytes: for ready batches.
  """

  disk_rate: float
  network_rate: float
  buffer_bytes: float = 2.0**30

  def __post_init__(self):
    """Raises `ValueError` for what no server is."""
    _positive(self, "disk_rate", "network_rate", "buffer_bytes")


@dataclasses.dataclass(frozen=True)
class Service:
  """A store, its servers and its trainers.

  Attributes:
    trainers: that read it.
    servers: that share it, in the order of its shards.
    steps: of each trainer.
    batch_bytes: of one step.
    spread: whether each batch has rows from all servers (a global shuffle); else
      one server after the other has a part of the epoch (the paper's buckets of
      consecutive rows).
    patience: seconds, see above; 0: nobody waits for another.
    ahead: batches that a trainer holds beyond the one it computes.
  """

  trainers: tuple[Trainer, ...]
  servers: tuple[Server, ...]
  steps: int
  batch_bytes: float
  spread: bool = True
  patience: float = 30.0
  ahead: int = 4

  def __post_init__(self):
    """Raises `ValueError` for what no service is."""
    for name in ("trainers", "servers"):
      if not getattr(self, name):
        raise ValueError(f"a service without {name}: expected at least one")
    _positive(self, "steps", "batch_bytes", "ahead")
    if not 0 <= self.patience < math.inf:
      raise ValueError(f"patience is {self.patience}: expected at least 0")


@dataclasses.dataclass(frozen=True)
class Result:
  """What came.

  Attributes:
    seconds: until the last trainer was done.
    finished: seconds at which each was.
    computing: share of its time in which each computed, recomputing included.
    down: share of its time in which each was away; the rest it waited.
    preemptions: of each.
    lost_steps: of each, computed again.
    read: bytes from all disks.
    sent: bytes to all trainers.
    disk_busy: share of the time, of the busiest disk.
    network_busy: share of the time, of the busiest line.
    line: (seconds, bytes read a second, bytes sent a second) over time.
  """

  seconds: float
  finished: tuple[float, ...]
  computing: tuple[float, ...]
  down: tuple[float, ...]
  preemptions: tuple[int, ...]
  lost_steps: tuple[float, ...]
  read: float
  sent: float
  disk_busy: float
  network_busy: float
  line: tuple[tuple[float, float, float], ...]


def run(service: Service, seed: int = 0, chunk: int | None = None) -> Result:
  """Simulates one service to its end; the same arguments give the same result.

  Args:
    service: what to simulate.
    seed: of preemptions.
    chunk: batches that go together; None: as many as keep it fast. Smaller
      buffers than four chunks count as four, and trainers go on from whole
      chunks.
  """
  if chunk is None:
    chunk = _chunk(service)
  clock, chance = Clock(), random.Random(seed)
  chunks = math.ceil(service.steps / chunk)
  servers = [
    SimulatedServer(
      clock,
      each,
      owned,
      share * chunk * service.batch_bytes,
      service.patience,
    )
    for each, owned, share in _shares(service, chunks)
  ]
  trainers = [
    SimulatedTrainer(
      clock, each, servers, service.steps, chunk, service.ahead, chance
    )
    for each in service.trainers
  ]
  for trainer in trainers:
    trainer.begin()
  while any(each.finished is None for each in trainers):
    if not clock.step():
      raise AssertionError("all wait for each other")
  seconds = max(each.finished for each in trainers)
  disks = [each.disk for each in servers]
  lines = [each.line for each in servers]
  return Result(
    seconds,
    tuple(each.finished for each in trainers),
    tuple(each.computed / each.finished for each in trainers),
    tuple(each.away / each.finished for each in trainers),
    tuple(each.preemptions for each in trainers),
    tuple(each.lost for each in trainers),
    *(
      sum(size for each in way for _, size in each.done)
      for way in (disks, lines)
    ),
    *(max(each.busy for each in way) / seconds for way in (disks, lines)),
    _over_time(disks, lines, seconds),
  )


def _chunk(service: Service) -> int:
  """As many as keep it fast, and no trainer silent for want of steps."""
  most = math.ceil(service.steps / _CHUNKS)
  slowest = max(each.step_seconds for each in service.trainers)
  if service.patience:
    most = min(most, int(service.patience / 4 / slowest))
  return max(1, most)


def _shares(service: Service, chunks: int):
  """(server, chunks that it has rows of, its share of their rows) of each."""
  count = len(service.servers)
  if service.spread and len(set(service.servers)) == 1:
    first = service.servers[0]
    whole = Server(
      count * first.disk_rate,
      count * first.network_rate,
      count * first.buffer_bytes,
    )
    return [(whole, range(chunks), 1.0)]
  if service.spread:
    return [(each, range(chunks), 1 / count) for each in service.servers]
  return [
    (each, range(number * chunks // count, (number + 1) * chunks // count), 1.0)
    for number, each in enumerate(service.servers)
  ]


def _over_time(disks, lines, seconds: float):
  width = seconds / _BINS
  rates = [[0.0] * _BINS, [0.0] * _BINS]
  for way, found in zip((disks, lines), rates, strict=True):
    for when, size in (done for each in way for done in each.done):
      found[min(int(when / width), _BINS - 1)] += size / width
  return tuple(
    ((place + 0.5) * width, rates[0][place], rates[1][place])
    for place in range(_BINS)
  )


def _positive(what, *names: str) -> None:
  for name in names:
    if not getattr(what, name) > 0:
      raise ValueError(f"{name} is {getattr(what, name)}: expected more than 0")
