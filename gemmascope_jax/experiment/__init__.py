"""The stations in a row, from one config: what the binaries call.

Each stage reads what the one before it left in the work directory, so each can
be run alone, and one that has finished is not done twice:

  harvest  -> store/, store.json
  train    -> train/ (metrics, checkpoints, finished SAEs)
  evaluate -> results/ (JSON), releases/ (folders named by measured L0)
  report   -> report/ (page, figures, tables)
"""

from __future__ import annotations

import pathlib

from gemmascope_jax import report
from gemmascope_jax.experiment import evaluation, settings
from gemmascope_jax.experiment.activations import harvest
from gemmascope_jax.experiment.evaluation import evaluate
from gemmascope_jax.experiment.members import calibrate, train
from gemmascope_jax.experiment.settings import Config, check
from gemmascope_jax.experiment.studies import STUDIES, study


def make_report(
  config: Config, training_only: bool = False
) -> dict[str, pathlib.Path]:
  """Results -> one page, figures and tables; or training's curves alone."""
  workdir = settings.workdir(config)
  if training_only:
    return report.build_training(workdir / "train", workdir / "report")
  if not (workdir / evaluation.RESULT).exists():
    raise FileNotFoundError(
      f"no results in {workdir}: run `python -m experiments.evaluate` with the"
      " same --config first, or ask for the curves of training alone"
      " (--training_only)"
    )
  return report.build(
    workdir / "results", workdir / "train", workdir / "report"
  )
