"""Settings by their dotted names, and configs with some of them changed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import ml_collections

Config = ml_collections.ConfigDict


def flat(config: Config, before: str = "") -> dict[str, Any]:
  """Every setting by its dotted name."""
  found = {}
  for name, value in config.items():
    if isinstance(value, Config):
      found |= flat(value, f"{before}{name}.")
    else:
      found[before + name] = value
  return found


def require(config: Config, name: str, where: str) -> None:
  """Raises `ValueError`, which begins with `where`, if there is no setting."""
  known = flat(config)
  if name not in known:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "see configs/default.py"
    raise ValueError(f"{where}: there is no setting {name!r}; {hint}")


def override(config: Config, values: Mapping[str, Any], where: str) -> None:
  """Changes settings of a config in place.

  Args:
    config: what is changed.
    values: by dotted names.
    where: what errors begin with.

  Raises:
    ValueError: a setting that does not exist, or has another type.
  """
  for name in values:
    require(config, name, where)
  try:
    config.update_from_flattened_dict(values)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{where}: {error}") from error
