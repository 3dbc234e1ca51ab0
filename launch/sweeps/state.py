"""How far a sweep is, from what its runs left on disk."""

from __future__ import annotations

import dataclasses
import pathlib

from gemmascope_jax import artifacts
from gemmascope_jax.sae.config import Recipe
from launch.runs import Run
from launch.sweeps.harvests import Harvest
from launch.sweeps.plan import Kept, Plan

_FILE = "sweep.json"
_FORMAT = 1


def remember(root: str, plan: Plan) -> None:
  """Writes what was planned, for later commands and for people.

  What earlier commands planned is kept in it, though its entries be gone.

  Args:
    root: the folder of the whole sweep.
    plan: with all its runs.
  """
  before = kept(root, plan.sweep.config)
  named = {each.name: each for each in (*before.harvests, *plan.harvests)}
  members = {name: list(recipes) for name, recipes in before.members.items()}
  for group in plan.groups:
    there = members.setdefault(group.name, [])
    there += [each for each in group.recipes if each not in there]
  artifacts.write_json(
    pathlib.Path(root) / _FILE,
    {
      "format": _FORMAT,
      "config": plan.sweep.config,
      "entries": plan.sweep.entries,
      "harvests": [dataclasses.asdict(each) for each in named.values()],
      "members": {
        name: [dataclasses.asdict(each) for each in recipes]
        for name, recipes in members.items()
      },
      "groups": [
        {
          "name": group.name,
          "harvest": group.harvest and group.harvest.name,
          "overrides": group.overrides,
        }
        for group in plan.groups
      ],
    },
  )


def kept(root: str, config: str) -> Kept:
  """What earlier commands planned in the same folder.

  Args:
    root: the folder of the whole sweep.
    config: the sweep's.

  Raises:
    ValueError: the folder is of a sweep of another config.
  """
  path = pathlib.Path(root) / _FILE
  if not path.exists():
    return Kept()
  found = artifacts.read_json(path)
  if found["config"] != config:
    raise ValueError(
      f"{root} holds a sweep of {found['config']}, not of {config}: choose"
      " another --root"
    )
  tuples = lambda value: tuple(value) if isinstance(value, list) else value
  return Kept(
    tuple(
      Harvest(
        each["name"],
        tuple(each["sites"]),
        each["rows"],
        {name: tuples(value) for name, value in each["overrides"].items()},
      )
      for each in found["harvests"]
    ),
    {
      name: tuple(map(Recipe.from_dict, recipes))
      for name, recipes in found.get("members", {}).items()
    },
  )


def table(plan: Plan, root: str) -> str:
  """Lines for a terminal: what is done, what failed and why.

  Args:
    plan: the sweep.
    root: its folder.
  """
  first, then = plan.runs(root)
  lines = [_line(run, f"{run.folder.name}  harvest") for run in first]
  for run, group in zip(then, plan.groups, strict=True):
    lines.append(_line(run, f"{group.name}  {len(group.recipes)} SAEs"))
  done = sum(run.is_done for run in then)
  saes = sum(
    len(group.recipes)
    for run, group in zip(then, plan.groups, strict=True)
    if run.is_done
  )
  failed = sum(run.failure is not None for run in (*first, *then))
  lines.append(
    f"{done} of {len(then)} runs done, {saes} of {plan.saes} SAEs; {failed}"
    " failed"
  )
  return "\n".join(lines)


def _line(run: Run, what: str) -> str:
  if run.is_done:
    return f"done     {what}"
  failure = run.failure
  if failure is not None:
    return f"FAILED   {what}: {failure['error']}"
  begun = any(run.folder.glob("log*.txt"))
  return f"{'begun' if begun else 'waiting':8} {what}"
