"""Delta loss and FVU on the subsets of a corpus (paper, 9)."""

from __future__ import annotations

import textwrap
from typing import Any

from gemmascope_jax.report import plotting, wording

_PANELS = (("delta_loss", "delta loss (nats a token)"), ("fvu", "FVU"))


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from a subsets result alone."""
  return {"subsets": subsets(result)}


def subsets(result: dict[str, Any]) -> Any:
  """A line a subset, a mark an SAE."""
  saes = result["saes"]
  there = [
    each
    for each in result["subsets"]
    if all(each["name"] in sae["subsets"] for sae in saes)
  ]
  lines = -(-len(saes) // 3)
  figure = plotting.blank(10.5, 2.6 + 0.42 * len(there) + 0.2 * lines)
  panels = figure.subplots(1, 2, sharey=True)
  for panel, (metric, label) in zip(panels, _PANELS, strict=True):
    extent = []
    for number, (sae, name) in enumerate(
      zip(saes, wording.short_names(saes), strict=True)
    ):
      at = number % len(plotting.SERIES)
      found = [sae["subsets"][each["name"]][metric] for each in there]
      means = [each["mean"] for each in found]
      errors = [each["stderr"] or 0.0 for each in found]
      extent += means + [m + e for m, e in zip(means, errors, strict=True)]
      extent += [
        m - e for m, e in zip(means, errors, strict=True) if e < m * 0.75
      ]
      shift = (number - (len(saes) - 1) / 2) * min(0.2, 0.6 / len(saes))
      panel.errorbar(
        means,
        [place + shift for place in range(len(there))],
        xerr=errors,
        color=plotting.SERIES[at],
        marker=plotting.MARKERS[at],
        linestyle="none",
        markersize=5,
        elinewidth=1,
        label=name,
      )
    plotting.log_axis(panel.xaxis, extent, (0.06, 0.06))
    panel.set_xlabel(label)
    panel.grid(axis="y", visible=False)
  panels[0].set_yticks(
    range(len(there)),
    [each["name"] + ("*" if each.get("stand_in") else "") for each in there],
  )
  panels[0].set_ylim(len(there) - 0.5, -0.5)
  plotting.frame(
    figure,
    "Subsets of a corpus",
    _facts(result, there),
    "Bars: one standard error over sequences. FVU: by the variance within the"
    f" subset. {_stand_ins(there)}",
    legend=panels[0].get_legend_handles_labels(),
  )
  return figure


def _facts(result, there) -> str:
  tokens = result.get("tokens", {})
  text = f"{there[0]['sequences']} sequences of each" if there else "No text"
  if "length" in tokens:
    text += f", {tokens['length']} tokens long"
  missing = [s["name"] for s in result["subsets"] if s not in there]
  return text + (f"; no text for {', '.join(missing)}." if missing else ".")


def _stand_ins(there) -> str:
  said = [f"{s['name']}: {s['stand_in']}" for s in there if s.get("stand_in")]
  if not said:
    return ""
  return textwrap.shorten(
    f"*A stand-in, not The Pile's text. {'; '.join(said)}.", 2000
  )
