"""A config's plan: what each of its runs costs, all together."""

from __future__ import annotations

import dataclasses

import ml_collections

from gemmascope_jax.experiment import runs, settings
from gemmascope_jax.gemma.config import GemmaConfig
from launch.planner import costs, feeding

Config = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run.

  Attributes:
    name: of it; "": the config's only one.
    config: its own.
    members: the SAEs that it trains together.
    feeding: what keeps it and the others of its site from waiting.
  """

  name: str
  config: Config
  members: tuple[costs.Training, ...]
  feeding: feeding.Feeding

  @property
  def is_live(self) -> bool:
    """Whether it makes its activations itself, and reads none."""
    return self.config.data.source == "live"


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config will cost.

  Attributes:
    config: what was planned.
    lm: the model's architecture.
    machine: what it runs on.
    harvests: that make the activations; runs whose activations are those of the
      config share one. Empty if they come from another store.
    runs: of training.
  """

  config: Config
  lm: GemmaConfig
  machine: costs.Machine
  harvests: tuple[costs.Harvest, ...]
  runs: tuple[Run, ...]

  @property
  def members(self) -> tuple[costs.Training, ...]:
    """All SAEs."""
    return tuple(each for run in self.runs for each in run.members)

  @property
  def device_hours(self) -> float:
    """Of the harvests and of all training."""
    parts = (*self.harvests, *self.members)
    return sum(each.device_hours for each in parts)


def make(
  config: Config, machine: costs.Machine, model: str = "", trainers: int = 1
) -> Plan:
  """Plans a config.

  Args:
    config: as a binary takes it.
    machine: what it would run on.
    model: the architecture, where `lm.source` does not tell.
    trainers: that read one site at a time, each like the config's run.

  Raises:
    ValueError: the config could not be carried out; names the setting.
  """
  lm = costs.model(config, model)
  made, planned = {}, []
  for name, each in runs.runs(config).items():
    settings.check(each)
    if each.data.source in ("", "live"):
      key = str((each.data, each.harvest, each.lm))
      if each.data.source:  # each live run has its own pass of the model
        key += name
      made.setdefault(key, costs.harvest(each, lm, machine))
    members = tuple(costs.training(each, lm, machine))
    spread = each.train.shuffle == "global"
    planned.append(
      Run(
        name,
        each,
        members,
        feeding.feeding(members, machine, trainers, spread),
      )
    )
  return Plan(config, lm, machine, tuple(made.values()), tuple(planned))
