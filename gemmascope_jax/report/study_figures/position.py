"""The position study's figure: errors along a sequence (paper, 3 and 15)."""

from __future__ import annotations

import math
from typing import Any

from gemmascope_jax.report import plotting, wording

_PANELS = (
  ("reconstruction", "reconstruction loss (share of the variance)"),
  ("delta_loss", "delta loss (nats a token)"),
)


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from a position result alone."""
  return {"position": position(result)}


def position(result: dict[str, Any]) -> Any:
  """Reconstruction and delta loss by bins of positions, a line an SAE."""
  saes = result["saes"]
  figure = plotting.blank(10.5, 4.9 + 0.2 * math.ceil(len(saes) / 3))
  panels = figure.subplots(1, 2)
  styles = plotting.sweep_styles(len(saes))
  names = wording.short_names(saes)
  for panel, (metric, label) in zip(panels, _PANELS, strict=True):
    values = []
    for sae, name, style in zip(saes, names, styles, strict=True):
      values += _line(panel, sae["bins"], metric, name, style)
    plotting.log_axis(panel.xaxis, [*_middles(saes[0]["bins"])], (0.03, 0.03))
    panel.set_xlabel("position in the sequence (BOS is 0)")
    panel.set_ylabel(label)
    panel.set_ylim(min(0, *values), max(values) * 1.05)
  plotting.frame(
    figure,
    "Errors along a sequence",
    f"On {wording.tokens(result['tokens'])}." if "tokens" in result else "",
    "Left: squared error over the variance of a token of the whole evaluation."
    " Points are means over bins of positions, each a quarter longer than what"
    " is before it; bars and bands: one standard error over sequences.",
    legend=panels[0].get_legend_handles_labels(),
  )
  return figure


def _middles(bins: dict[str, list]) -> list[float]:
  pairs = zip(bins["first"], bins["last"], strict=True)
  return [math.sqrt(first * last) for first, last in pairs]


def _line(panel, bins, metric, name, style) -> list[float]:
  """Draws one SAE's; returns the values that the axis has to show."""
  colour, dash = style
  points = [
    (x, y, error or 0.0)
    for x, y, error in zip(
      _middles(bins), bins[metric], bins[f"{metric}_stderr"], strict=True
    )
    if y is not None
  ]
  x, y, error = zip(*points, strict=True)
  low = [a - b for a, b in zip(y, error, strict=True)]
  high = [a + b for a, b in zip(y, error, strict=True)]
  panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
  panel.plot(
    x, y, color=colour, linestyle=dash, marker=".", markersize=5, label=name
  )
  # One bin of a few tokens must not decide the axis.
  return [*y, *(h for h, e, v in zip(high, error, y, strict=True) if e < v)]
