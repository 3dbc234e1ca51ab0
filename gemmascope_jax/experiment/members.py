"""The training stage, and where its SAEs are."""

from __future__ import annotations

import pathlib

from gemmascope_jax import training
from gemmascope_jax.experiment import activations, settings
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.releases import gemma_scope


def train(config: Config) -> list[pathlib.Path]:
  """Activations -> a sweep of SAEs, one a sparsity coefficient."""
  settings.check(config)
  return training.train(
    activations.open_stream(config),
    settings.recipes(config),
    settings.workdir(config) / "train",
    seed=config.seed,
    mesh=settings.mesh(config),
    schedule=training.Schedule(
      log_every=config.train.log_every,
      checkpoint_every=config.train.checkpoint_every,
      keep_checkpoints=config.train.keep_checkpoints,
      progress=config.progress,
    ),
  )


def finished_members(config: Config) -> list[pathlib.Path]:
  """The folders of the trained SAEs, in the sweep's order.

  Raises:
    FileNotFoundError: one is missing or damaged; says what to run.
  """
  found = training.members(
    settings.workdir(config) / "train", settings.recipes(config)
  )
  whole = [
    gemma_scope.is_whole(path) and gemma_scope.is_whole(initial_of(path))
    for path in found
  ]
  missing = [p.name for p, ok in zip(found, whole, strict=True) if not ok]
  if missing:
    raise FileNotFoundError(
      f"no whole SAE {missing[0]} in {config.workdir}: run `python -m"
      " experiments.train` with the same --config first"
    )
  return found


def initial_of(folder: pathlib.Path) -> pathlib.Path:
  """Where the same member lies as it was before its first step."""
  return folder.parent.parent / training.INITIAL / folder.name
