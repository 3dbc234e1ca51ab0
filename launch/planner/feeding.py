"""Reading activations: how fast, from how many servers; and whether to store.

A trainer is one run: its members, the SAEs of a sweep, share its batches, and
their steps follow one another on its devices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from launch.planner.costs import Harvest, Machine, Training


@dataclasses.dataclass(frozen=True)
class Feeding:
  """What keeps the trainers of one site from waiting.

  Attributes:
    trainers: that read it together.
    step_seconds: of each, all members' steps together.
    batch_bytes: of one step.
    servers: how many are needed.
    enough: whether so many suffice: where batches come from one server after
      the other, no number does if one is too slow.
  """

  trainers: int
  step_seconds: float
  batch_bytes: int
  servers: int
  enough: bool

  @property
  def needed(self) -> float:
    """Bytes a second that one trainer takes in."""
    return self.batch_bytes / self.step_seconds

  @property
  def read(self) -> float:
    """Bytes a second from all disks: each batch once for all trainers."""
    return self.needed

  @property
  def sent(self) -> float:
    """Bytes a second to all trainers."""
    return self.trainers * self.needed


def feeding(
  members: Sequence[Training],
  machine: Machine,
  trainers: int = 1,
  spread: bool = True,
) -> Feeding:
  """Servers and rates for some trainers of one site.

  Args:
    members: of each trainer.
    machine: a server's disk and network.
    trainers: how many of them read the same batches.
    spread: whether each batch has rows from all servers (train.shuffle
      "global"), so that their rates add up; "bucket" takes one server after the
      other.

  Raises:
    ValueError: no trainers.
  """
  if trainers < 1:
    raise ValueError(f"--trainers={trainers}: expected at least 1")
  step = sum(each.step_seconds for each in members)
  size = members[0].batch_bytes
  disk = size / step / 2**30 / machine.disk_gib_s
  network = trainers * size / step / 2**30 / machine.network_gib_s
  wanted = max(1, math.ceil(max(disk, network) - 1e-9))
  if spread:
    return Feeding(trainers, step, size, wanted, True)
  return Feeding(trainers, step, size, 1, wanted == 1)


def storing_dollars(made: Harvest, machine: Machine, days: float) -> float:
  """Of keeping what was harvested."""
  return made.bytes / 2**40 * machine.tib_month_dollars * days / 30


def harvesting_dollars(made: Harvest, machine: Machine) -> float:
  """Of making it once."""
  return made.device_hours * machine.accelerator.dollars


def break_even_days(made: Harvest, machine: Machine) -> float:
  """For how many days storing costs as much as harvesting once more.

  Infinite where storing is free.

  Args:
    made: the harvest; it stores something.
    machine: prices.
  """
  day = storing_dollars(made, machine, 1)
  return harvesting_dollars(made, machine) / day if day else math.inf
