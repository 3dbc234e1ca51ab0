"""Builds the whole report: figures, tables and page, from result folders."""

from __future__ import annotations

import os
import pathlib

from gemmascope_jax import artifacts
from gemmascope_jax.report import (
  figures,
  page,
  plotting,
  table,
  training_figure,
)
from gemmascope_jax.report.latent_results import read_latents
from gemmascope_jax.report.results import read_fidelity
from gemmascope_jax.report.training_metrics import read_metrics

TABLE = "table.txt"
MARKDOWN = "table.md"
CURVE = "sparsity_fidelity.png"
TRAINING = "training_curves.png"
SPECTRUM = "spectrum.png"
PAGE = "index.html"


def build(
  results_folder: str | os.PathLike,
  train_folder: str | os.PathLike | None,
  out_folder: str | os.PathLike,
) -> dict[str, pathlib.Path]:
  """Writes the report; the same inputs give the same bytes.

  Args:
    results_folder: holds `fidelity.json`, and `latents.json` if the page is
      to show latents.
    train_folder: holds `metrics.jsonl`; None leaves the training curves out.
    out_folder: where the report goes; made if need be. A figure there that
      these inputs do not give any more is removed.

  Returns:
    File name -> path, for each file written: table.txt, table.md,
    sparsity_fidelity.png, index.html; training_curves.png with a train folder;
    spectrum.png if the result has a spectrum.

  Raises:
    FileNotFoundError: no `fidelity.json`, or no `metrics.jsonl` in a
      `train_folder` that was given.
    ResultError: a file is not what it should be; names file and field.
    ImportError: matplotlib is not installed (the tables are written then).
  """
  results_folder = pathlib.Path(results_folder)
  out = pathlib.Path(out_folder)
  result = read_fidelity(results_folder / "fidelity.json")
  latents_path = results_folder / "latents.json"
  latents = read_latents(latents_path) if latents_path.exists() else None
  members = None
  if train_folder is not None:
    members = read_metrics(pathlib.Path(train_folder) / "metrics.jsonl")

  written: dict[str, pathlib.Path] = {}

  def write(name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    with artifacts.atomic_write(out / name) as file:
      file.write(data)
    written[name] = out / name

  write(TABLE, table.terminal_table(result) + "\n")
  write(MARKDOWN, table.markdown_table(result) + "\n")
  plots = {}
  with plotting.style():
    jobs = [("curve", CURVE, lambda t: figures.sparsity_fidelity(result, t))]
    if members is not None:
      draw = lambda t: training_figure.training_curves(
        members,
        f"Training at {result.site}" if t else "",
        figures.where(result) + "." if t else "",
      )
      jobs.append(("training", TRAINING, draw))
    if result.spectrum is not None:
      jobs.append(("spectrum", SPECTRUM, lambda t: figures.spectrum(result, t)))
    for name, file_name, draw in jobs:
      write(file_name, plotting.png(draw(True)))
      plots[name] = plotting.svg(draw(False), name)
  write(PAGE, page.page(result, plots, latents))
  for stale in {TRAINING, SPECTRUM} - set(written):
    (out / stale).unlink(missing_ok=True)
  return written


def build_training(
  train_folder: str | os.PathLike, out_folder: str | os.PathLike
) -> dict[str, pathlib.Path]:
  """Writes the training curves alone, while a run goes on or after it.

  Args:
    train_folder: holds `metrics.jsonl` and `run.json`.
    out_folder: where the figure goes; made if need be.

  Returns:
    File name -> path: training_curves.png.

  Raises:
    FileNotFoundError: no `metrics.jsonl`.
    ResultError: a file is not what it should be; names file and field.
    ImportError: matplotlib is not installed.
  """
  folder = pathlib.Path(train_folder)
  members = read_metrics(folder / "metrics.jsonl")
  run = artifacts.read_json(folder / "run.json")
  path = pathlib.Path(out_folder) / TRAINING
  with plotting.style():
    figure = training_figure.training_curves(
      members, f"Training at {run['site']}", f"{run['model']}."
    )
    with artifacts.atomic_write(path) as file:
      file.write(plotting.png(figure))
  return {TRAINING: path}
