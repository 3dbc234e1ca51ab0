"""A sweep -> harvests, and groups of SAEs that are trained by one run each.

SAEs that differ in the recipe alone are members of one run: they read one
stream of activations, and those of one shape share one compiled step. Runs
whose activations come from the same model, text and settings share a harvest,
which writes all their sites in one pass of the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gemmascope_jax.experiment import overrides, settings
from gemmascope_jax.experiment import runs as experiment_runs
from gemmascope_jax.sae.config import Recipe
from launch.runs import Run, absolute
from launch.sweeps import harvests as harvesting
from launch.sweeps import reading
from launch.sweeps.grid import Overrides
from launch.sweeps.harvests import Harvest
from launch.sweeps.reading import Config, Sweep

# What members of one run may differ in, besides the recipe.
_OF_MEMBERS = {
  "train.sparsity_coefficients": (),
  "train.target_l0s": (),
  "train.target_l0_coefficient": 0.0,
  "train.members": (),
}
_OF_STREAM = (
  "recipe.batch_size"  # the one setting of a recipe that is not theirs
)
# Decided by the sweep itself, or by where it runs.
_OWN = ("workdir", "runs", "progress", "harvest.root", "harvest.sites")
_OWN += ("harvest.part", "harvest.parts")


@dataclasses.dataclass(frozen=True)
class Group:
  """SAEs that one run trains.

  Attributes:
    name: of its folder.
    config: of the stream; its recipe is that of the first entry.
    recipes: of the members.
    overrides: of the sweep's config, by dotted name, that make it this one.
    harvest: whose store it reads; None: it names a source of its own.
  """

  name: str
  config: Config
  recipes: tuple[Recipe, ...]
  overrides: Overrides
  harvest: Harvest | None

  def folder(self, root: str) -> pathlib.Path:
    """Its work directory below that of the sweep."""
    return pathlib.Path(root) / "runs" / self.name


@dataclasses.dataclass(frozen=True)
class Kept:
  """What earlier commands planned in the same folder: it stays where it is.

  Attributes:
    harvests: that were planned, or made.
    members: recipes by the run's name, in its order; of entries that are gone,
      too.
  """

  harvests: tuple[Harvest, ...] = ()
  members: Mapping[str, tuple[Recipe, ...]] = dataclasses.field(
    default_factory=dict
  )


@dataclasses.dataclass(frozen=True)
class Plan:
  """All runs of a sweep.

  Attributes:
    sweep: what was planned.
    harvests: to run first.
    groups: to run after them, in any order.
  """

  sweep: Sweep
  harvests: tuple[Harvest, ...]
  groups: tuple[Group, ...]

  @property
  def saes(self) -> int:
    """How many SAEs there will be."""
    return sum(len(group.recipes) for group in self.groups)

  def runs(self, root: str) -> tuple[list[Run], list[Run]]:
    """The commands of the harvests, and of the groups, for any launcher.

    Args:
      root: the folder of the whole sweep.
    """
    root = absolute(root)
    return (
      [self._run("harvest", each, root) for each in self.harvests],
      [self._run("quickstart", each, root) for each in self.groups],
    )

  def _run(self, binary: str, each: Harvest | Group, root: str) -> Run:
    folder = each.folder(root)
    command = [
      *(sys.executable, "-m", f"experiments.{binary}"),
      f"--config={self.sweep.config}",
      f"--config.workdir={folder}",
    ]
    if isinstance(each, Harvest) or each.harvest is not None:
      command.append(f"--config.harvest.root={pathlib.Path(root) / 'stores'}")
    command += [f"--config.{k}={v}" for k, v in sorted(each.overrides.items())]
    return Run(folder, tuple(command))


def make(sweep: Sweep, kept: Kept | None = None) -> Plan:
  """Groups a sweep's entries.

  An entry without settings of sparsity stands for as many SAEs as the config
  itself names (`train.sparsity_coefficients` and so on).

  Args:
    sweep: what to plan.
    kept: of earlier commands: an SAE stays in its run, and a site is not
      harvested again, whatever the sweep comes to hold.

  Raises:
    FileNotFoundError: no such config.
    ValueError: no entries, a setting that does not exist or has another type, a
      recipe that makes no sense, or the same SAE twice; names the entry.
  """
  if not sweep.entries:
    raise ValueError(f"the sweep of {sweep.config} is empty")
  base = reading.config(sweep.config)
  if names := [name for name in experiment_runs.runs(base) if name]:
    raise ValueError(
      f"{sweep.config} has runs of its own ({', '.join(names)}), and so would"
      " each entry: expected a config without, and the runs as entries"
    )
  kept = kept or Kept()
  streams: dict[str, tuple[Config, list[Recipe]]] = {}
  for number, entry in enumerate(sweep.entries):
    where = f"entry {number}, {entry!r}"
    config = _overridden(base, entry, where)
    try:
      settings.check(config)
      recipes = settings.recipes(config)
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
    _, members = streams.setdefault(str(_stream(config)), (config, []))
    for recipe in recipes:
      if recipe in members:
        raise ValueError(f"{where}: the same SAE comes twice in the sweep")
      members.append(recipe)
  shared = harvesting.share(
    [config for config, _ in streams.values()], base, kept.harvests
  )
  before = _stream(base)
  groups: list[Group] = []
  for (config, members), harvest in zip(streams.values(), shared, strict=True):
    name = _name(config)
    changed = {k: v for k, v in _stream(config).items() if v != before[k]}
    if harvest is not None:
      changed |= harvest.overrides
    parts = _parts(name, members, sweep.latents_per_run, kept.members)
    for part, recipes in parts.items():
      differs = changed | _members(base, changed, recipes)
      groups.append(Group(part, config, tuple(recipes), differs, harvest))
  once = {each.name: each for each in shared if each is not None}
  return Plan(sweep, tuple(once.values()), tuple(groups))


def _overridden(base: Config, entry: Overrides, where: str) -> Config:
  """A config with an entry's settings, and the sites that it trains on."""
  config = base.copy_and_resolve_references()
  for name in entry:
    if name in _OWN:
      raise ValueError(f"{where}: {name} is the sweep's own to set")
  overrides.override(config, entry, where)
  config.harvest.sites = settings.trained_sites(config)
  return config


def _stream(config: Config) -> dict[str, Any]:
  """The settings that all members of a run share."""
  return {
    key: value
    for key, value in overrides.flat(config).items()
    if key not in (*_OF_MEMBERS, *_OWN)
    and (key == _OF_STREAM or not key.startswith("recipe."))
  }


def _parts(
  name: str,
  members: Sequence[Recipe],
  latents: int,
  kept: Mapping[str, Sequence[Recipe]],
) -> dict[str, list[Recipe]]:
  """The runs of one stream, by name, with their members.

  Those that were in a run stay in it, at their places; others come after, as
  many a run as have so many latents together.
  """
  nth = lambda number: f"{name}-part{number}" if number > 1 else name
  last, parts = 1, {}
  for number in itertools.count(1):
    if nth(number) not in kept:
      break
    last = number
    parts[nth(number)] = [each for each in kept[nth(number)] if each in members]
  placed = [each for part in parts.values() for each in part]
  for recipe in members:
    if recipe in placed:
      continue
    part = parts.setdefault(nth(last), [])
    together = sum(each.width for each in part) + recipe.width
    if latents and part and together > latents:
      last += 1
      part = parts.setdefault(nth(last), [])
    part.append(recipe)
  return {run: recipes for run, recipes in parts.items() if recipes}


def _members(
  base: Config, changed: Overrides, recipes: Sequence[Recipe]
) -> Overrides:
  """The settings that make a run train these and no others.

  Args:
    base: the sweep's config.
    changed: what else the run overrides.
    recipes: of its members.
  """
  run = base.copy_and_resolve_references()
  run.update_from_flattened_dict(changed | _OF_MEMBERS)
  own = dataclasses.asdict(settings.recipes(run)[0])
  members = []
  for recipe in recipes:
    values = dataclasses.asdict(recipe)
    differs = {k: v for k, v in values.items() if v != own[k]}
    if "threshold_init_l0" in differs:  # None is 0 in a config
      differs["threshold_init_l0"] = differs["threshold_init_l0"] or 0.0
    members.append(differs)
  return {
    "train.sparsity_coefficients": (),
    "train.target_l0s": (),
    "train.members": tuple(members),
  }


def _name(config: Config) -> str:
  """Of a run's folder: the same, whatever else the sweep comes to hold."""
  sites = "_to_".join(
    filter(None, (config.train.site, config.train.target_site))
  )
  stream = str(sorted(_stream(config).items()))
  digest = hashlib.sha256(stream.encode()).hexdigest()[:6]
  return f"{sites}_{config.train.tokens}_tokens_{digest}"
