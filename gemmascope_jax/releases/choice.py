"""Choosing an SAE by its L0: paths that end in `canonical` or `nearest_l0_N`.

Below `layer_L/width_W/` a release has a folder for each average L0. The
canonical one is that which the catalogue marks; of releases that it does not
know, the one nearest 100.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from gemmascope_jax.releases import catalogue, names

_ENDS = re.compile(
  r"(?P<place>.+)/(canonical|nearest_l0_(?P<l0>\d+(\.\d+)?))/?"
)
_L0 = re.compile(r"average_l0_(\d+)")


class Choice(NamedTuple):
  """A choice among the SAEs of a layer and width.

  Attributes:
    place: the folder of their folders.
    l0: the nearest one to it; None: the canonical one.
  """

  place: str
  l0: float | None


def parse(path: str) -> Choice | None:
  """The choice that a path's end asks for; None: none."""
  found = _ENDS.fullmatch(path)
  if found is None:
    return None
  l0 = found["l0"]
  return Choice(found["place"], None if l0 is None else float(l0))


def choose(
  choice: Choice, folders: Iterable[str], above: str = ""
) -> str | None:
  """The path chosen; None: there is no folder `average_l0_N`.

  Args:
    choice: what is asked for.
    folders: names of the folders in its place.
    above: what stands before the place, if that tells which repository of Gemma
      Scope it is in.
  """
  there = [int(match[1]) for each in folders if (match := _L0.fullmatch(each))]
  if not there:
    return None
  best = None
  l0 = choice.l0
  if l0 is None:
    best, l0 = _marked(f"{above}{choice.place}"), catalogue.CANONICAL_L0
  if best not in there:
    best = min(there, key=lambda each: (abs(each - l0), -each))
  return f"{choice.place}/average_l0_{best}"


def _marked(place: str) -> int | str | None:
  """The catalogue's canonical L0, if it has one for that place."""
  name = names.in_path(f"{place}/{names.CANONICAL}")
  if name is None or name.repo not in catalogue.repos():
    return None
  try:
    return catalogue.resolve(name).l0
  except ValueError:  # a layer or width that it does not list
    return None
