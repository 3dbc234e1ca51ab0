"""Reads a sweep's file, and the config that it is about."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import types

import ml_collections

from launch.sweeps.grid import Overrides

Config = ml_collections.ConfigDict


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
    ValueError: it lacks one of the two, or an entry is no dict.
  """
  module = _module(path)
  for name in ("CONFIG", "get_sweep"):
    if not hasattr(module, name):
      raise ValueError(
        f"{path} has no {name}: expected CONFIG, the path of a config, and"
        " get_sweep(), which returns a list of overrides"
      )
  entries = tuple(module.get_sweep())
  for number, entry in enumerate(entries):
    if not isinstance(entry, dict):
      raise ValueError(
        f"{path}: entry {number} is {entry!r}; expected a dict, as"
        ' {"recipe.width": 8192}'
      )
  return Sweep(module.CONFIG, entries, getattr(module, "LATENTS_PER_RUN", 0))


def config(given: str) -> Config:
  """A config's file as `--config` takes it, "PATH" or "PATH:CHOICE".

  Raises:
    FileNotFoundError: there is none.
    ValueError: it has no `get_config`.
  """
  path, colon, choice = given.partition(":")
  module = _module(path)
  if not hasattr(module, "get_config"):
    raise ValueError(f"{path} has no get_config(): expected a config's file")
  return module.get_config(choice) if colon else module.get_config()


def _module(path: str) -> types.ModuleType:
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"no file {path}: expected one of Python code")
  found = importlib.util.spec_from_file_location("read_by_path", path)
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  return module
