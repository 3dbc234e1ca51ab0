"""Many trainers of many sites, by simulation.

Every site (a layer, say) has a service of its own, as in Gemma Scope 3.3; the
trainers are divided among them as evenly as can be.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import statistics

from launch.planner import plan, simulate

_FACTORS = (0.5, 0.75, 1, 1.25, 1.5, 2)  # of the servers
_SOME = 8  # services, to compare numbers of servers


@dataclasses.dataclass(frozen=True)
class Scenario:
  """What is simulated beside the plan.

  Attributes:
    trainers: at a time, over all services.
    services: how many sites are trained on at the same time.
    servers: of each service; 0: as many as the plan says.
    buffer_gib: of each server.
    preemption_hours: on average between preemptions of a trainer; 0: never.
    down_minutes: until it computes again.
    notice: whether it saves when it is preempted, as ours do at SIGTERM; else it
      goes on from the checkpoint before.
    patience: seconds that trainers of a site wait for one that is away, or
      behind, see `data.serving.ready`.
    slower: a trainer's steps take longer by a share that is drawn from 0 to
      this one.
    seed: of what is drawn.
  """

  trainers: int = 1
  services: int = 1
  servers: int = 0
  buffer_gib: float = 1.0
  preemption_hours: float = 0.0
  down_minutes: float = 10.0
  notice: bool = True
  patience: float = 30.0
  slower: float = 0.0
  seed: int = 0

  def __post_init__(self):
    """Refuses what can't be.

    Raises:
      ValueError: names the flag.
    """
    if not 1 <= self.services <= self.trainers:
      raise ValueError(
        f"--trainers={self.trainers} --services={self.services}: expected at"
        " least one service, and a trainer for each"
      )
    names = ("servers", "preemption_hours", "down_minutes", "patience")
    for name in (*names, "slower"):
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(f"--{name}={getattr(self, name)}: expected at least 0")
    if not self.buffer_gib > 0:
      raise ValueError(f"--buffer_gib={self.buffer_gib}: expected more than 0")

  @property
  def shares(self) -> tuple[int, ...]:
    """Trainers of each service."""
    least, rest = divmod(self.trainers, self.services)
    return tuple(least + (number < rest) for number in range(self.services))


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the simulation gave.

  Attributes:
    scenario: of it.
    servers: of each service.
    steps: of each trainer.
    undisturbed: seconds of a trainer that never waits, nor is preempted, nor
      slower than the plan says.
    results: of each service.
    by_servers: {servers of a service: share of the time that trainers of the
      first eight services compute}, all else as in the scenario.
  """

  scenario: Scenario
  servers: int
  steps: int
  undisturbed: float
  results: tuple[simulate.Result, ...]
  by_servers: dict[int, float]

  @property
  def seconds(self) -> float:
    """Until the last trainer of the last service is done."""
    return max(each.seconds for each in self.results)

  def share(self, name: str) -> float:
    """Mean over all trainers of "computing" or "down"."""
    return statistics.mean(
      value for each in self.results for value in getattr(each, name)
    )


def service(
  run: plan.Run, machine, scenario: Scenario, number: int, servers: int
) -> simulate.Service:
  """One of the services of a scenario.

  Args:
    run: what each trainer does.
    machine: a server's disk and network.
    scenario: see there.
    number: of the service.
    servers: that it has.
  """
  chance = random.Random(f"{scenario.seed} {number}")
  mean = scenario.preemption_hours * 3600 or math.inf
  trainers = tuple(
    simulate.Trainer(
      run.feeding.step_seconds * (1 + scenario.slower * chance.random()),
      mean,
      scenario.down_minutes * 60,
      1 if scenario.notice else _checkpoint_steps(run),
    )
    for _ in range(scenario.shares[number])
  )
  server = simulate.Server(
    machine.disk_gib_s * 2**30,
    machine.network_gib_s * 2**30,
    scenario.buffer_gib * 2**30,
  )
  return simulate.Service(
    trainers,
    (server,) * servers,
    max(each.steps for each in run.members),
    run.feeding.batch_bytes,
    run.config.train.shuffle == "global",
    scenario.patience,
  )


def _checkpoint_steps(run: plan.Run) -> int:
  """Between checkpoints, by steps or minutes, whichever comes first."""
  steps, minutes = (
    run.config.train.checkpoint_every,
    run.config.train.checkpoint_minutes,
  )
  if minutes:
    by_time = max(1, int(minutes * 60 / run.feeding.step_seconds))
    steps = min(steps or by_time, by_time)
  return steps


def predict(run: plan.Run, machine, scenario: Scenario) -> Prediction:
  """Simulates a scenario.

  Args:
    run: what each trainer does; its `feeding` is of the trainers of one site.
    machine: a server's disk and network.
    scenario: see there.
  """
  servers = scenario.servers or run.feeding.servers
  steps = max(each.steps for each in run.members)

  @functools.cache
  def simulated(number: int, count: int) -> simulate.Result:
    made = service(run, machine, scenario, number, count)
    return simulate.run(made, seed=scenario.seed * 10_000 + number)

  # Without chance, services of equally many trainers are alike.
  by_chance = scenario.preemption_hours or scenario.slower
  shares = scenario.shares
  alike = [
    number if by_chance else shares.index(share)
    for number, share in enumerate(shares)
  ]
  counts = sorted({max(1, round(servers * factor)) for factor in _FACTORS})
  return Prediction(
    scenario,
    servers,
    steps,
    steps * run.feeding.step_seconds,
    tuple(simulated(number, servers) for number in alike),
    {
      count: statistics.mean(
        share
        for number in alike[:_SOME]
        for share in simulated(number, count).computing
      )
      for count in counts
    },
  )
