"""Transcoders beside SAEs of the site that they write to (paper, 11)."""

from __future__ import annotations

from typing import Any

from gemmascope_jax.report import plotting, wording

_METRICS = (("delta_loss", "delta loss (nats a token)"), ("fvu", "FVU"))
_LABELS = {"sae": "SAE"}


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from a transcoders result alone."""
  return {"transcoders": transcoders(result)}


def transcoders(result: dict[str, Any]) -> Any:
  """Delta loss and FVU against L0, a line a kind and site."""
  groups: dict[tuple[str, str], list] = {}
  for row in result["saes"]:
    if row["l0"]["mean"] > 0:
      groups.setdefault((row["site"], row["kind"]), []).append(row)
  figure = plotting.blank(10.5, 4.7)
  panels = figure.subplots(1, 2)
  for panel, (metric, label) in zip(panels, _METRICS, strict=True):
    extent = []
    for number, ((site, kind), rows) in enumerate(groups.items()):
      rows = sorted(rows, key=lambda row: row["l0"]["mean"])
      at = number % len(plotting.SERIES)
      means = [row[metric]["mean"] for row in rows]
      errors = [row[metric]["stderr"] or 0.0 for row in rows]
      for mean, error in zip(means, errors, strict=True):
        extent += [mean, mean + error, max(mean - error, mean / 4)]
      panel.errorbar(
        [row["l0"]["mean"] for row in rows],
        means,
        xerr=[row["l0"]["stderr"] or 0.0 for row in rows],
        yerr=errors,
        color=plotting.SERIES[at],
        marker=plotting.MARKERS[at],
        linewidth=1.4,
        elinewidth=1,
        markersize=5,
        label=f"{site}: {_LABELS.get(kind, kind)}",
      )
    shown = [row["l0"]["mean"] for rows in groups.values() for row in rows]
    plotting.log_axis(panel.xaxis, shown, (0.08, 0.08))
    plotting.log_axis(panel.yaxis, extent, (0.08, 0.08))
    panel.set_xlabel("L0 (active latents a token)")
    panel.set_ylabel(label)
  seen = f" on {wording.tokens(result['tokens'])}" if "tokens" in result else ""
  plotting.frame(
    figure,
    "Transcoders and SAEs of an MLP's output",
    f"Spliced in where the MLP writes, one at a time{seen}.",
    "Bars: one standard error over sequences; all share their text, so"
    " differences are surer than the bars say.",
    legend=panels[0].get_legend_handles_labels(),
  )
  return figure
