"""Lists of overrides, put together as `itertools` would.

A sweep is a list; each entry overrides settings of one config by their dotted
names, as `{"train.site": "res.5", "recipe.width": 8192}`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

Overrides = dict[str, Any]


def axis(name: str, values: Iterable[Any]) -> list[Overrides]:
  """One setting's values: `axis("recipe.width", (4096, 8192))`.

  Raises:
    ValueError: a single value.
  """
  if isinstance(values, str) or not isinstance(values, Iterable):
    raise ValueError(
      f"the values of {name} are {values!r}; expected several, as ({values!r},)"
    )
  return [{name: value} for value in values]


def product(*sweeps: Sequence[Overrides]) -> list[Overrides]:
  """Every entry of one with every entry of the others, the last one fastest.

  Raises:
    ValueError: two that are joined give the same setting different values.
  """
  return functools.reduce(
    lambda one, other: [_joined(a, b) for a in one for b in other],
    sweeps,
    [{}],
  )


def zipped(*sweeps: Sequence[Overrides]) -> list[Overrides]:
  """First with first, second with second.

  Raises:
    ValueError: they differ in length, or see `product`.
  """
  lengths = [len(sweep) for sweep in sweeps]
  if len(set(lengths)) > 1:
    raise ValueError(f"zipped sweeps have {lengths} entries: expected equally")
  return [functools.reduce(_joined, each) for each in zip(*sweeps, strict=True)]


def chain(*sweeps: Sequence[Overrides]) -> list[Overrides]:
  """One after the other."""
  return [entry for sweep in sweeps for entry in sweep]


def _joined(one: Overrides, other: Overrides) -> Overrides:
  for name in one.keys() & other.keys():
    if one[name] != other[name]:
      raise ValueError(
        f"{name} is both {one[name]!r} and {other[name]!r} in one entry:"
        " expected each setting in one of the sweeps that are joined"
      )
  return one | other
