"""The evaluation's figures: sparsity-fidelity, PCA spectrum.

Each takes parsed results and returns a matplotlib figure; call these inside
`plotting.style()`, and turn the figure into bytes there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gemmascope_jax.report import plotting, wording
from gemmascope_jax.report.plotting import INK, MUTED, PAPER
from gemmascope_jax.report.results import Fidelity, Row, Value

AXIS_LABELS = {
  "delta_loss": "delta loss (nats/token)",
  "fvu": "FVU (variance unexplained)",
}
L0_LABEL = "L0 (active latents per token)"


def sparsity_fidelity(result: Fidelity, with_title: bool = True) -> Any:
  """Delta loss and FVU against L0, side by side (paper, figures 2 and 13).

  A line joins the SAEs of one family and width; error bars are one standard
  error both ways; each SAE is labelled with its sparsity coefficient. PCA
  stands at x = components, a baseline with an L0 is a hollow marker there, and
  a baseline without one (an ablation) is a horizontal line.

  Args:
    result: SAEs and baselines.
    with_title: whether the figure carries title and notes itself.
  """
  figure = plotting.blank(10.5, 5.4 if with_title else 4.5)
  panels = figure.subplots(1, 2)
  for panel, metric in zip(panels, ("delta_loss", "fvu"), strict=True):
    _fidelity_panel(panel, result, metric)
  handles, labels = panels[0].get_legend_handles_labels()
  words = {}
  if with_title:
    words = {
      "title": f"Sparsity and fidelity at {result.site}",
      "facts": _facts(result),
      "notes": fidelity_notes(result),
    }
  plotting.frame(figure, legend=(handles, labels), **words)
  return figure


def fidelity_notes(result: Fidelity) -> str:
  """What the marks of `sparsity_fidelity` are, in a line or two."""
  notes = "Bars: one standard error over " + wording.count(
    result.clean_loss.n, "sequence"
  )
  notes += ", where wider than the marker."
  if any(row.sparsity_coefficient is not None for row in result.saes):
    notes += " λ: sparsity coefficient."
  loss = wording.plus_minus(result.clean_loss)
  return f"{notes} Clean loss: {loss} nats/token."


def spectrum(result: Fidelity, with_title: bool = True) -> Any:
  """FVU of PCA against its components, with each SAE at its L0.

  Args:
    result: one with a `spectrum`.
    with_title: whether the figure carries title and notes itself.
  """
  components = [float(count) for count, _ in result.spectrum]
  unexplained = [fvu for _, fvu in result.spectrum]
  figure = plotting.blank(8.2, 5.2 if with_title else 4.3)
  panel = figure.subplots()
  panel.plot(
    components,
    unexplained,
    color=INK,
    marker="D",
    markersize=4.5,
    linewidth=1.4,
    label="PCA (the same components for every token)",
  )
  plot_saes(panel, result.saes, "fvu", series(result.saes))
  xs = components + [row.l0.mean for row in result.saes]
  ys = unexplained + [row.fvu.mean for row in result.saes]
  plotting.log_axis(panel.xaxis, xs, (0.05, 0.05))
  plotting.log_axis(panel.yaxis, ys, (0.08, 0.15))
  _coefficients(panel, result, "fvu")
  panel.set_xlabel("PCA components, or L0 of an SAE")
  panel.set_ylabel(AXIS_LABELS["fvu"])
  panel.legend(loc="best")
  if with_title:
    plotting.frame(
      figure,
      f"PCA spectrum and SAEs at {result.site}",
      _facts(result),
      "Bars: one standard error. λ: sparsity coefficient.",
    )
  return figure


def where(result: Fidelity) -> str:
  """Model and site, in words."""
  return f"{result.model}, {wording.site(result.site)}"


def _facts(result: Fidelity) -> str:
  return (
    f"{where(result)}: {wording.dictionary(result)}, evaluated on"
    f" {wording.tokens(result.tokens)}."
  )


def _fidelity_panel(panel: Any, result: Fidelity, metric: str) -> None:
  colours = plot_saes(panel, result.saes, metric, series(result.saes))
  xs = [row.l0.mean for row in result.saes]
  ys = [y for row in result.rows for y in extent(getattr(row, metric))]
  hollow = False
  for row in result.baselines:
    value = getattr(row, metric)
    if row.components is not None:
      xs.append(row.components)
      panel.errorbar(
        row.components,
        value.mean,
        yerr=value.stderr,
        color=INK,
        marker="X",
        markersize=9,
        linestyle="none",
        label=row.name,
      )
    elif row.l0 is not None:
      xs.append(row.l0.mean)
      panel.errorbar(
        row.l0.mean,
        value.mean,
        xerr=row.l0.stderr,
        yerr=value.stderr,
        color=colours.get(row.of, MUTED),
        marker="o",
        markerfacecolor=PAPER,
        markeredgewidth=1.5,
        linestyle="none",
        label=None if hollow else "untrained SAE at equal L0",
      )
      hollow = True
  plotting.log_axis(panel.xaxis, xs, (0.16, 0.06))
  plotting.log_axis(panel.yaxis, ys, (0.08, 0.12))
  _coefficients(panel, result, metric)
  _ablations(panel, result, metric)
  panel.set_xlabel(L0_LABEL)
  panel.set_ylabel(AXIS_LABELS[metric])


def series(saes: Iterable[Row]) -> list[tuple[str, int]]:
  """The families and widths of SAEs, in the order of their colours."""
  return sorted({(row.family, row.width) for row in saes})


def plot_saes(
  panel: Any,
  saes: Iterable[Row],
  metric: str,
  every: Sequence[tuple[str, int]],
) -> dict[str, str]:
  """Draws a line of each family and width.

  Args:
    panel: to draw in.
    saes: rows of it.
    metric: "delta_loss" or "fvu".
    every: of `series`; may hold some that this panel does not.

  Returns:
    Each SAE's colour, by name.
  """
  colours = {}
  for i, key in enumerate(every):
    rows = [row for row in saes if (row.family, row.width) == key]
    if not rows:
      continue
    colour = plotting.SERIES[i % len(plotting.SERIES)]
    rows = sorted(rows, key=lambda row: row.l0.mean)
    colours |= {row.name: colour for row in rows}
    values = [getattr(row, metric) for row in rows]
    panel.errorbar(
      [row.l0.mean for row in rows],
      [value.mean for value in values],
      xerr=[row.l0.stderr or 0 for row in rows],
      yerr=[value.stderr or 0 for value in values],
      color=colour,
      marker=plotting.MARKERS[i % len(plotting.MARKERS)],
      capsize=3,
      elinewidth=1.2,
      label=f"{wording.family(key[0])} SAEs, {key[1]:,} latents",
    )
  return colours


def _coefficients(panel: Any, result: Fidelity, metric: str) -> None:
  """Labels the SAEs, below and left; near ones of one lambda share a label."""
  placed: list[tuple[str, Any]] = []
  rows = [row for row in result.saes if row.sparsity_coefficient is not None]
  for row in sorted(rows, key=lambda row: getattr(row, metric).mean):
    text = f"λ {wording.coefficient(row.sparsity_coefficient)}"
    point = (row.l0.mean, getattr(row, metric).mean)
    x, y = panel.transData.transform(point)
    if any(
      text == other and abs(x - u) < 45 and abs(y - v) < 45
      for other, (u, v) in placed
    ):
      continue
    placed.append((text, (x, y)))
    panel.annotate(
      text,
      point,
      xytext=(-5, -5),
      textcoords="offset points",
      ha="right",
      va="top",
      size=8,
      color=MUTED,
    )


def extent(value: Value) -> list[float]:
  """The heights of a mark with its error bar, as far as a log axis has them."""
  bars = [value.mean + sign * (value.stderr or 0) for sign in (-1, 1)]
  return [value.mean, *(bar for bar in bars if bar > 0 or value.mean <= 0)]


def _ablations(panel: Any, result: Fidelity, metric: str) -> None:
  """Horizontal lines, labelled above, or below where a line is close above."""
  rows = [r for r in result.baselines if r.l0 is None and r.components is None]
  values = sorted((getattr(r, metric).mean, r.name) for r in rows)
  heights = [panel.transData.transform((1, value))[1] for value, _ in values]
  room = 0.07 * panel.bbox.height
  for i, (value, name) in enumerate(values):
    above = i + 1 == len(values) or heights[i + 1] - heights[i] > room
    panel.axhline(
      value,
      color=MUTED,
      linewidth=1.2,
      linestyle=(0, (5, 3)) if i % 2 == 0 else (0, (1.5, 2)),
      zorder=1,
    )
    panel.annotate(
      f"{name}: {wording.number(value)}",
      (1, value),
      xycoords=("axes fraction", "data"),
      xytext=(-2, 3 if above else -4),
      textcoords="offset points",
      ha="right",
      va="bottom" if above else "top",
      size=9,
      color=MUTED,
    )
