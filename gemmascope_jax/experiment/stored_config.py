"""The config that a run was made with, from what it left."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.experiment import settings
from gemmascope_jax.experiment.settings import Config

FILE = "config.json"
# Older runs have no file of their own, but results say it as well.
_RESULTS = ("results/studies/fidelity.json", "results/fidelity.json")


def write(config: Config) -> None:
  """Leaves the config in the work directory, where it is not yet."""
  path = settings.workdir(config) / FILE
  content = artifacts.json_bytes(settings.resolved(config))
  if not path.exists() or path.read_bytes() != content:
    artifacts.write_bytes(path, content)


def read(run: str | os.PathLike, defaults: Config) -> Config:
  """The config of a run.

  Args:
    run: its work directory.
    defaults: of settings that are newer than the run.

  Raises:
    FileNotFoundError: no run there, or one that does not say.
    ValueError: it has a setting that this version lacks.
  """
  run = pathlib.Path(run)
  if not run.is_dir():
    raise FileNotFoundError(f"no run at {run}: there is no such folder")
  values = None
  if (run / FILE).exists():
    values = artifacts.read_json(run / FILE)
  for name in _RESULTS:
    if values is None and (run / name).exists():
      values = artifacts.read_json(run / name).get("config")
  if values is None:
    raise FileNotFoundError(
      f"{run} does not say which config it was made with (no {FILE}, and no"
      " results): give it, as --config=configs/quickstart.py, or name the folder"
      " that holds train/"
    )
  config = defaults.copy_and_resolve_references().lock()
  try:
    config.update(_tuples(values))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{run} was made with settings that this version does not have"
      f" ({error}): give the config, as --config=configs/quickstart.py"
    ) from error
  config.workdir = str(run)
  return config


def _tuples(value: Any) -> Any:
  """JSON's lists as the tuples that settings have."""
  if isinstance(value, dict):
    return {key: _tuples(each) for key, each in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(each) for each in value)
  return value
