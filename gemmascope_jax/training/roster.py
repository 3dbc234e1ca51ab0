"""The members of a run: their names, and where their files are.

A run is the members that are asked for now. Each has its recipe in a file of
its own and keeps the name that it was first given, so that a list may grow,
shrink or change its order: a recipe that is new to the run joins it, one that
is not asked for keeps its files and rests.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.load import FINISHED, ORDER

INITIAL = "initial"
CHECKPOINTS = "checkpoints"
_MEMBERS = "members"
_RECIPE = "recipe.json"


@dataclasses.dataclass(frozen=True)
class Member:
  """One SAE of a run.

  Attributes:
    run: the run's folder.
    name: unique in the run, as in tables and logs.
    recipe: how it is trained.
  """

  run: pathlib.Path
  name: str
  recipe: Recipe

  @property
  def slug(self) -> str:
    """The name as the name of a folder."""
    return _slug(self.name)

  @property
  def finished(self) -> pathlib.Path:
    """The folder of the finished SAE."""
    return self.run / FINISHED / self.slug

  @property
  def initial(self) -> pathlib.Path:
    """The folder of the same SAE before its first step."""
    return self.run / INITIAL / self.slug

  @property
  def checkpoints(self) -> pathlib.Path:
    """The folder of its checkpoints."""
    return self.run / CHECKPOINTS / self.slug

  @property
  def stop(self) -> pathlib.Path:
    """While this file exists, the member rests: `touch` it to stop one."""
    return self.run / _MEMBERS / self.slug / "stop"

  @property
  def is_namesake(self) -> bool:
    """Whether it is new, and a member with another recipe has its name."""
    known = self.run / _MEMBERS / self.slug / _RECIPE
    return self.name != self.recipe.name and not known.exists()

  @property
  def is_whole(self) -> bool:
    """Whether it has finished and its files are what was written."""
    return all(map(gemma_scope.is_whole, (self.finished, self.initial)))


def members(
  folder: str | os.PathLike, recipes: Sequence[Recipe]
) -> list[Member]:
  """The members that recipes are in a run, in the order of `recipes`.

  A name is the recipe's own, with six digits of a hash if another recipe of
  the run, or one before it in the list, has that.

  Args:
    folder: of the run; need not exist.
    recipes: no two the same.
  """
  folder = pathlib.Path(folder)
  enrolled = _enrolled(folder)
  taken = {slug for slug, _, _ in enrolled}
  known = {recipe: name for _, name, recipe in enrolled if recipe}
  found = []
  for recipe in recipes:
    name = known.get(recipe, recipe.name)
    if recipe not in known and _slug(name) in taken:
      name = f"{name} {artifacts.fingerprint(recipe)[:6]}"
    found.append(Member(folder, name, recipe))
    taken.add(found[-1].slug)
  return found


def enrol(folder: pathlib.Path, found: Sequence[Member]) -> None:
  """Writes each member's recipe, and that these are asked for now."""
  for member in found:
    path = folder / _MEMBERS / member.slug / _RECIPE
    if not path.exists():
      recipe = dataclasses.asdict(member.recipe)
      artifacts.write_json(path, {"name": member.name, "recipe": recipe})
  listed = [{"name": member.name, "folder": member.slug} for member in found]
  order = folder / ORDER
  if not order.exists() or artifacts.read_json(order) != listed:
    artifacts.write_json(order, listed)


def nearest(member: Member) -> str:
  """What a member that a run lacks differs in from the most similar there."""
  asked = dataclasses.asdict(member.recipe)
  options = [
    (artifacts.differences(dataclasses.asdict(recipe), asked), name)
    for _, name, recipe in _enrolled(member.run)
    if recipe
  ]
  differs, name = min(options, key=lambda o: len(o[0]), default=([], ""))
  return f"{name} is there, but {'; '.join(differs)}" if differs else ""


def _enrolled(
  folder: pathlib.Path,
) -> list[tuple[str, str, Recipe | None]]:
  """(folder name, name, recipe) of all that a run has ever been asked for.

  A recipe that this version can't read is None.
  """
  found = []
  for path in sorted((folder / _MEMBERS).glob(f"*/{_RECIPE}")):
    values = artifacts.read_json(path)
    found.append((path.parent.name, values["name"], _recipe(values["recipe"])))
  return found


def _recipe(values: dict[str, Any]) -> Recipe | None:
  try:
    return Recipe.from_dict(values)
  except ValueError:
    return None


def _slug(name: str) -> str:
  return name.replace(" ", "_").replace("=", "_")
