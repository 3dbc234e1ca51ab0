"""Fidelity against L0, for SAEs of one or more sites (paper, 2, 13, 17, 18)."""

from __future__ import annotations

import math
from typing import Any

from gemmascope_jax.report import plotting, wording

_METRICS = (
  ("delta_loss", "delta loss (nats a token)"),
  ("fvu", "FVU"),
)

_DASHES = ("-", "--", ":")


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from a fidelity result of format 2 alone."""
  return {"fidelity": fidelity(result)}


def fidelity(result: dict[str, Any]) -> Any:
  """Delta loss and FVU against L0, a line a site, kind, family and width."""
  groups: dict[tuple, list] = {}
  for sae in result["saes"]:
    if sae["l0"] and sae["l0"]["mean"] > 0:
      key = sae["site"], _kind(sae), sae.get("family"), sae.get("width")
      groups.setdefault(key, []).append(sae)
  figure = plotting.blank(10.5, 4.7 + 0.2 * math.ceil(len(groups) / 3))
  panels = figure.subplots(1, 2)
  for panel, (metric, label) in zip(panels, _METRICS, strict=True):
    for number, (key, saes) in enumerate(groups.items()):
      saes = sorted(saes, key=lambda sae: sae["l0"]["mean"])
      at = number % len(plotting.SERIES)
      panel.errorbar(
        [sae["l0"]["mean"] for sae in saes],
        [sae[metric]["mean"] for sae in saes],
        xerr=[sae["l0"]["stderr"] or 0 for sae in saes],
        yerr=[sae[metric]["stderr"] or 0 for sae in saes],
        color=plotting.SERIES[at],
        marker=plotting.MARKERS[at],
        linestyle=_DASHES[number // len(plotting.SERIES) % len(_DASHES)],
        linewidth=1.4,
        elinewidth=1,
        markersize=5,
        label=_label(key),
      )
    shown = [sae for saes in groups.values() for sae in saes]
    plotting.log_axis(
      panel.xaxis, [sae["l0"]["mean"] for sae in shown], (0.08, 0.08)
    )
    plotting.log_axis(panel.yaxis, _extent(shown, metric), (0.06, 0.06))
    panel.set_xlabel("L0 (active latents a token)")
    panel.set_ylabel(label)
  hidden = [sae["name"] for sae in result["saes"] if sae not in shown]
  seen = f" on {wording.tokens(result['tokens'])}" if "tokens" in result else ""
  plotting.frame(
    figure,
    "Sparsity and fidelity",
    f"SAEs spliced into the model one at a time{seen}."
    + (
      f" Without an active latent, so not here: {', '.join(hidden)}."
      * bool(hidden)
    ),
    "Bars: one standard error over sequences; SAEs share their text, so they"
    " differ by less than their bars say.",
    legend=panels[0].get_legend_handles_labels(),
  )
  return figure


def _extent(saes: list[dict[str, Any]], metric: str) -> list[float]:
  """Points and the ends of their bars, but for ends that a log axis lacks."""
  found = []
  for sae in saes:
    mean, error = sae[metric]["mean"], sae[metric]["stderr"] or 0.0
    low = mean - error
    found += [mean, mean + error, low if low > mean / 4 else mean]
  return found


def _kind(sae: dict[str, Any]) -> str:
  """What it is, if it is no SAE."""
  if sae.get("reads", sae["site"]) == sae["site"]:
    return ""
  return " skip transcoder" if sae.get("skip") else " transcoder"


def _label(key: tuple) -> str:
  site, kind, family, width = key
  name = wording.family(family) + kind if family else "SAE"
  return f"{site}: {name}" + (f", {width:,} latents" if width else "")
