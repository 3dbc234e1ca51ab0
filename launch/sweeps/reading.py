"""Reads a sweep's file, and the config that it is about."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import pathlib
import traceback
import types
from collections.abc import Callable
from typing import Any

import ml_collections

from launch.sweeps.grid import Overrides

Config = ml_collections.ConfigDict
_NAMES = ("CONFIG", "LATENTS_PER_RUN", "get_sweep")


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a file of configs/sweeps/ says.

  Attributes:
    config: the config that its entries override, as `--config` takes it.
    entries: overrides by dotted names.
    latents_per_run: of all members of a run together, at most; 0: any number.
  """

  config: str
  entries: tuple[Overrides, ...]
  latents_per_run: int = 0


def sweep(path: str) -> Sweep:
  """Reads a sweep.

  Args:
    path: of Python code with `CONFIG`, a config as `--config` takes it, and
      `get_sweep()`, which returns a list of overrides; maybe `LATENTS_PER_RUN`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it lacks one of the two, one of the three is not what it should
      be, or its code raises an error.
  """
  module = _module(path)
  for name in vars(module).keys() - set(_NAMES):
    if near := difflib.get_close_matches(name, _NAMES, 1, 0.85):
      raise ValueError(f"{path} has {name}: did you mean {near[0]}?")
  for name in ("CONFIG", "get_sweep"):
    if not hasattr(module, name):
      raise ValueError(
        f"{path} has no {name}: expected CONFIG, the path of a config, and"
        " get_sweep(), which returns a list of overrides"
      )
  if not isinstance(module.CONFIG, str):
    raise ValueError(
      f"{path}: CONFIG is {module.CONFIG!r}; expected the path of a config"
    )
  latents = getattr(module, "LATENTS_PER_RUN", 0)
  if type(latents) is not int or latents < 0:
    raise ValueError(
      f"{path}: LATENTS_PER_RUN is {latents!r}; expected a whole number, 0 for"
      " any"
    )
  entries = _called(path, module.get_sweep)
  if not isinstance(entries, (list, tuple)):
    raise ValueError(
      f"{path}: get_sweep() returned {entries!r}; expected a list of overrides"
    )
  for number, entry in enumerate(entries):
    if not isinstance(entry, dict):
      raise ValueError(
        f"{path}: entry {number} is {entry!r}; expected a dict, as"
        ' {"recipe.width": 8192}'
      )
  return Sweep(module.CONFIG, tuple(entries), latents)


def config(given: str) -> Config:
  """A config's file as `--config` takes it, "PATH" or "PATH:CHOICE".

  Raises:
    FileNotFoundError: there is none.
    ValueError: it has no `get_config`, or its code raises an error.
  """
  path, colon, choice = given.partition(":")
  module = _module(path)
  if not hasattr(module, "get_config"):
    raise ValueError(f"{path} has no get_config(): expected a config's file")
  chosen = (choice,) if colon else ()
  return _called(given, module.get_config, *chosen)


def _called(path: str, function: Callable[..., Any], *arguments: Any) -> Any:
  """What a file's code returns; its errors name the file, and the line."""
  try:
    return function(*arguments)
  except Exception as error:
    file = path.partition(":")[0]
    frames = traceback.extract_tb(error.__traceback__)
    lines = [each.lineno for each in frames if each.filename.endswith(file)]
    where = f"{path}, line {lines[-1]}" if lines else path
    what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(f"{where}: {what}{error}") from error


def _module(path: str) -> types.ModuleType:
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"no file {path}: expected one of Python code")
  found = importlib.util.spec_from_file_location("read_by_path", path)
  if found is None:
    raise ValueError(f"{path}: expected a file of Python code, NAME.py")
  module = importlib.util.module_from_spec(found)
  _called(path, found.loader.exec_module, module)
  return module
