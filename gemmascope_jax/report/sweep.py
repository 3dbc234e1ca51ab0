"""The results of many runs as one table and one set of figures."""

from __future__ import annotations

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.report import figures, plotting, wording
from gemmascope_jax.report.results import Fidelity, Row, read_fidelity

_METRICS = ("l0", "delta_loss", "fvu")
_COLUMNS = 4
_MOST_TOGETHER = 12  # sites in one figure; more are drawn a kind of site each


def build(
  results: Mapping[str, str | pathlib.Path],
  out: str | pathlib.Path,
  missing: Sequence[str] = (),
) -> list[pathlib.Path]:
  """Writes the table and the figures.

  Args:
    results: `fidelity.json` of each run that has one, by the run's name.
    out: the folder.
    missing: runs that have none yet, which figures and table say.

  Returns:
    The files: saes.csv (every number, with standard errors), saes.md, and
    delta_loss.png and fvu.png, or several of these by kind of site where there
    are many sites.

  Raises:
    ResultError: a result that is not one.
    ImportError: matplotlib is not installed (the tables are written then).
  """
  out = pathlib.Path(out)
  found = {name: read_fidelity(path) for name, path in results.items()}
  if not found:
    return []
  written = []

  def write(name: str, content: bytes) -> None:
    artifacts.write_bytes(out / name, content)
    written.append(out / name)

  write("saes.csv", csv_table(found).encode())
  write("saes.md", markdown_table(found, missing).encode())
  with plotting.style():
    for name, sites in _figures(found).items():
      for metric in ("delta_loss", "fvu"):
        drawn = plotting.png(_figure(sites, metric, found, missing))
        write(f"{metric}{name}.png", drawn)
  return written


def csv_table(results: Mapping[str, Fidelity]) -> str:
  """A line for each SAE, with every digit; a metric's error beside it.

  Args:
    results: by the run's name.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  metrics = [each for name in _METRICS for each in (name, f"{name}_stderr")]
  writer.writerow(
    ["site", "family", "width", "sparsity_coefficient", "train_tokens"]
    + [*metrics, "dead_fraction", "name", "run"]
  )
  for run, result, row in _rows(results):
    values = [getattr(row, name) for name in _METRICS]
    writer.writerow(
      [result.site, row.family, row.width, row.sparsity_coefficient]
      + [row.train_tokens]
      + [x for value in values for x in (value.mean, value.stderr)]
      + [row.dead_fraction, row.name, run]
    )
  return file.getvalue()


def markdown_table(
  results: Mapping[str, Fidelity], missing: Sequence[str] = ()
) -> str:
  """The same for people: by site, width and L0.

  Args:
    results: by the run's name.
    missing: runs without results.
  """
  lines = [
    "| site | SAE | latents | λ | L0 | delta loss (nats/token) | FVU | dead (%) |",
    "|:--|:--|--:|--:|--:|--:|--:|--:|",
  ]
  for _, result, row in _rows(results):
    coefficient = row.sparsity_coefficient
    cells = [
      result.site,
      wording.family(row.family),
      f"{row.width:,}",
      "–" if coefficient is None else wording.coefficient(coefficient),
      *(wording.plus_minus(getattr(row, name)) for name in _METRICS),
      wording.percent(row.dead_fraction),
    ]
    lines.append(f"| {' | '.join(cells)} |")
  lines += ["", _facts(results, missing), ""]
  return "\n".join(lines)


def _rows(results):
  every = [
    (run, result, row) for run, result in results.items() for row in result.saes
  ]
  place = lambda each: (
    _place(each[1].site),
    each[2].family,
    each[2].width,
    each[2].l0.mean,
  )
  return sorted(every, key=place)


def _place(site: str) -> tuple[str, int]:
  kind, _, layer = site.partition(".")
  return kind, int(layer) if layer.isdigit() else 0


def _facts(results: Mapping[str, Fidelity], missing: Sequence[str]) -> str:
  saes = sum(len(result.saes) for result in results.values())
  models = ", ".join(sorted({each.model for each in results.values()}))
  tokens = sorted({wording.tokens(each.tokens) for each in results.values()})
  text = f"{models}: {wording.count(saes, 'SAE')} of"
  text += f" {wording.count(len(results), 'run')}, on {'; '.join(tokens)}."
  if missing:
    text += f" {wording.count(len(missing), 'run')} without results so far."
  return text


def _figures(results) -> dict[str, list[str]]:
  """Which sites a figure shows, by the end of its name."""
  sites = sorted({each.site for each in results.values()}, key=_place)
  if len(sites) <= _MOST_TOGETHER:
    return {"": sites}
  kinds: dict[str, list[str]] = {}
  for site in sites:
    kinds.setdefault(f"_{_place(site)[0]}", []).append(site)
  return kinds


def _figure(
  sites: Sequence[str],
  metric: str,
  results: Mapping[str, Fidelity],
  missing: Sequence[str],
) -> Any:
  rows_of: dict[str, list[Row]] = {site: [] for site in sites}
  for result in results.values():
    if result.site in rows_of:
      rows_of[result.site] += result.saes
  every = figures.series(row for rows in rows_of.values() for row in rows)
  across = min(len(sites), _COLUMNS)
  down = math.ceil(len(sites) / across)
  figure = plotting.blank(max(3.4 * across, 7.5), 3.0 * down + 1.6)
  panels = figure.subplots(down, across, squeeze=False).flatten()
  legend: dict[str, Any] = {}
  for place, (panel, site) in enumerate(zip(panels, sites, strict=False)):
    rows = rows_of[site]
    figures.plot_saes(panel, rows, metric, every)
    ys = [y for row in rows for y in figures.extent(getattr(row, metric))]
    plotting.log_axis(panel.xaxis, [row.l0.mean for row in rows], (0.1, 0.1))
    plotting.log_axis(panel.yaxis, ys, (0.1, 0.1))
    panel.set_title(site)
    if place >= len(sites) - across:  # nothing below it
      panel.set_xlabel(figures.L0_LABEL)
    if place % across == 0:
      panel.set_ylabel(figures.AXIS_LABELS[metric])
    handles, labels = panel.get_legend_handles_labels()
    legend |= dict(zip(labels, handles, strict=True))
  for panel in panels[len(sites) :]:
    panel.set_visible(False)
  plotting.frame(
    figure,
    title=f"Sparsity and {'delta loss' if metric == 'delta_loss' else 'FVU'}",
    facts=_facts(results, missing),
    notes="Bars: one standard error over sequences, where wider than the"
    " marker. Each panel has a scale of its own.",
    legend=(list(legend.values()), list(legend)),
  )
  return figure
