"""The frequency study's figure: how often latents fire (paper, figure 5)."""

from __future__ import annotations

import math
from typing import Any

from gemmascope_jax.report import plotting, wording
from gemmascope_jax.report.plotting import GRID, INK, MUTED

_DENSE = 0.1
_FEW = 10  # tokens; a latent that fired on fewer has no frequency to speak of


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from a frequency result alone."""
  return {"frequency": frequency(result)}


def frequency(result: dict[str, Any]) -> Any:
  """Histograms of log10 frequency, and the shares of dead and dense latents."""
  saes = result["saes"]
  styles = plotting.sweep_styles(len(saes))
  figure = plotting.blank(10.5, 4.9 + 0.2 * math.ceil(len(saes) / 3))
  left, right = figure.subplots(1, 2, width_ratios=(2.1, 1))
  histograms(left, result["bins"], saes, styles, result["tokens"]["counted"])
  _shares(right, saes, styles)
  plotting.frame(
    figure,
    f"How often latents fire at {result['site']}",
    f"{wording.site(result['site']).capitalize()}, on"
    f" {wording.tokens(result['tokens'])}.",
    "Share of tokens on which a latent is active; latents that never fired on"
    " these tokens are the dead ones. Left: bins of a fifth of a decade; the"
    f" dotted line is {_DENSE:.0%}. Bars: one standard error over sequences.",
    legend=left.get_legend_handles_labels(),
  )
  return figure


def histograms(
  panel: Any, edges, saes, styles, counted: int, labels=None
) -> None:
  """Share of an SAE's latents by log10 frequency, a line an SAE.

  Args:
    panel: to draw on.
    edges: of the bins.
    saes: with "histogram", "width" and "name".
    styles: (colour, line style) of each.
    counted: tokens that were looked at.
    labels: what the SAEs are called; None: their names.
  """
  # Two bins in one: calmer, and still a fifth of a decade.
  middles = edges[1::2]
  rarest, few = math.log10(1 / counted), math.log10(_FEW / counted)
  values = []
  for i, (sae, (colour, dash)) in enumerate(zip(saes, styles, strict=True)):
    counts = sae["histogram"]
    pairs = zip(counts[::2], counts[1::2], strict=True)
    share = [(a + b) / sae["width"] * 100 for a, b in pairs]
    # Counts of one, two, three tokens leave bins between them empty.
    points = [
      (x, y or math.nan)
      for x, y in zip(middles, share, strict=True)
      if y or x > few
    ]
    values += [y for _, y in points if y > 0]
    panel.plot(
      *zip(*points, strict=True),
      color=colour,
      linestyle=dash,
      linewidth=1.6,
      marker=".",
      markersize=5,
      label=labels[i] if labels else sae["name"],
    )
  panel.axvline(math.log10(_DENSE), color=MUTED, linestyle=":", linewidth=1.2)
  panel.axvspan(rarest - 9, few, color=GRID, alpha=0.45, linewidth=0, zorder=0)
  panel.annotate(
    f"< {_FEW} tokens",
    (few, 1),
    xycoords=("data", "axes fraction"),
    xytext=(-4, -4),
    textcoords="offset points",
    ha="right",
    va="top",
    size=8.5,
    color=MUTED,
  )
  if values:
    plotting.log_axis(panel.yaxis, values, (0.08, 0.2))
  panel.set_xlim(rarest - 0.2, 0.05)
  panel.set_xlabel("log10 of the share of tokens on which a latent fires")
  panel.set_ylabel("share of latents (%)")


def _shares(panel: Any, saes, styles) -> None:
  """Dead, above 1 % and above 10 %: a marker an SAE, with its error."""
  kinds = (
    ("dead", "never"),
    ("dense", "on > 1 %"),
    ("very_dense", "on > 10 %"),
  )
  offset = 0.7 / max(len(saes), 1)
  for i, (sae, (colour, _)) in enumerate(zip(saes, styles, strict=True)):
    places = [
      place + offset * (i - (len(saes) - 1) / 2) for place in range(len(kinds))
    ]
    panel.errorbar(
      places,
      [sae[key]["mean"] * 100 for key, _ in kinds],
      yerr=[(sae[key]["stderr"] or 0) * 100 for key, _ in kinds],
      color=colour,
      marker=plotting.MARKERS[i % len(plotting.MARKERS)],
      linestyle="none",
      capsize=3,
      elinewidth=1.2,
    )
  values = [sae[key]["mean"] * 100 for sae in saes for key, _ in kinds]
  panel.set_yscale("symlog", linthresh=0.1, linscale=0.5)
  panel.set_ylim(-0.01, min(max([*values, 0.2]) * 2, 110))
  panel.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
  panel.set_xticks(range(len(kinds)), [name for _, name in kinds], color=INK)
  panel.set_xlim(-0.5, len(kinds) - 0.5)
  panel.grid(axis="x", visible=False)
  panel.set_xlabel("fires")
  panel.set_ylabel("share of latents (%)")
