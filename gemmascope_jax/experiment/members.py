"""The training stage, and where its SAEs are."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from gemmascope_jax import training
from gemmascope_jax.experiment import (
  activations,
  runs,
  settings,
  stored_config,
)
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.training import calibrate as calibrating

FOLDER = "train"
_CALIBRATION = "calibration"


def train(config: Config) -> list[pathlib.Path]:
  """Activations -> a sweep of SAEs, see `settings.recipes`; or those of every
  one of `config.runs`."""
  every = runs.runs(config)
  for each in every.values():
    settings.check(each)
  stored_config.write(config)
  found = []
  for number, (name, each) in enumerate(every.items(), 1):
    if name and config.progress:
      print(f"\n{name} ({number} of {len(every)} runs)", flush=True)
    found += _train(each)
  return found


def _train(config: Config) -> list[pathlib.Path]:
  return training.train(
    activations.open_stream(config),
    settings.recipes(config),
    settings.workdir(config) / FOLDER,
    seed=config.seed,
    mesh=settings.mesh(config),
    schedule=settings.schedule(config),
    loggers=tuple(config.train.loggers),
  )


def calibrate(
  config: Config, l0s: Sequence[float], steps: int
) -> list[calibrating.Found]:
  """Which lambdas give wanted L0s; see `training.calibrate`.

  Args:
    config: the lambda in the middle of its sweep is where the search begins.
    l0s: wanted.
    steps: of each short run.
  """
  settings.check(config)
  recipes = settings.recipes(config)
  return calibrating.calibrate(
    activations.open_stream(config),
    recipes[len(recipes) // 2],
    l0s,
    settings.workdir(config) / _CALIBRATION,
    steps=steps,
    seed=config.seed,
    mesh=settings.mesh(config),
    progress=config.progress,
  )


def finished_members(config: Config) -> list[training.Member]:
  """The trained members, in the sweep's order.

  Raises:
    FileNotFoundError: one is missing or damaged; says what to run.
  """
  found = training.members(
    settings.workdir(config) / FOLDER, settings.recipes(config)
  )
  for member in found:
    if not member.is_whole:
      near = training.nearest(member)
      if member.stop.exists():
        near = f"it rests: delete {member.stop} for it to go on"
      raise FileNotFoundError(
        f"no whole SAE {member.slug} in {config.workdir}: run `python -m"
        " experiments.train` with the same --config first"
        + (f" ({near})" if near else "")
      )
  return found
