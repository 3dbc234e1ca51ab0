"""The uniformity study's figure (paper, figure 16)."""

from __future__ import annotations

import math
from typing import Any

from gemmascope_jax.report import plotting, wording

_COLUMNS = 3
_TARGETS = {
  "own": "the token's own logit",
  "all": "the logits of the token and all later ones",
}
_POINTS = {
  "x": "gradients at the activation",
  "x_hat": "gradients at the SAE's reconstruction, spliced in",
}


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """r_L0 against L0: a panel a site, a line a family and width.

  Args:
    result: of `studies.uniformity.run`; rows without r_L0 are left out.

  Returns:
    {"uniformity": figure}.

  Raises:
    ValueError: no row has an r_L0.
  """
  rows = [row for row in result["rows"] if row["r_l0"] is not None]
  if not rows:
    raise ValueError("no SAE has an r_L0: no latent was active at any token")
  sites = list(dict.fromkeys(row["site"] for row in rows))
  kinds = sorted({(row["family"], row["width"]) for row in rows})
  lines = math.ceil(len(sites) / _COLUMNS)
  columns = math.ceil(len(sites) / lines)
  figure = plotting.blank(max(6.5, 3.8 * columns), 3.5 * lines + 1.5)
  panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
  for panel in panels.ravel()[len(sites) :]:
    panel.axis("off")
  handles: dict[str, Any] = {}
  xs = [row["l0"]["mean"] for row in rows]
  for panel, site in zip(panels.ravel(), sites, strict=False):
    for i, kind in enumerate(kinds):
      found = [
        row
        for row in rows
        if row["site"] == site and (row["family"], row["width"]) == kind
      ]
      if not found:
        continue
      label = f"{wording.family(kind[0])}, {kind[1]:,} latents"
      handles.setdefault(label, _line(panel, found, i))
    plotting.log_axis(panel.xaxis, xs, (0.06, 0.06))
    panel.set_title(site, weight="bold")
    panel.set_xlabel("L0 (active latents per token)")
  for line in panels:
    line[0].set_ylabel("r_L0 (1: all active latents\nhave the same effect)")
  plotting.frame(
    figure,
    "How evenly active latents share the prediction",
    _facts(result, rows),
    _notes(result),
    legend=(list(handles.values()), list(handles)),
  )
  return {"uniformity": figure}


def _line(panel: Any, rows: list[dict], number: int) -> Any:
  rows = sorted(rows, key=lambda row: row["l0"]["mean"])
  values = lambda key, part: [row[key][part] or 0 for row in rows]
  return panel.errorbar(
    values("l0", "mean"),
    values("r_l0", "mean"),
    xerr=values("l0", "stderr"),
    yerr=values("r_l0", "stderr"),
    color=plotting.SERIES[number % len(plotting.SERIES)],
    marker=plotting.MARKERS[number % len(plotting.MARKERS)],
    capsize=3,
    elinewidth=1.2,
  )


def _facts(result, rows) -> str:
  counted = max(row["tokens"] for row in rows)
  facts = (
    f"{result['model']['label']}: {wording.count(len(rows), 'SAE')} on"
    f" {wording.tokens(result['tokens'] | {'counted': counted})}. Effects on"
    f" {_TARGETS[result['target']]}, {_POINTS[result['at']]}"
  )
  if result["softcap"]:
    facts += ", soft-capped logits"
  return f"{facts}."


def _notes(result) -> str:
  n = max(row["l0"]["n"] for row in result["rows"])
  notes = f"Bars: one standard error over {wording.count(n, 'sequence')}."
  shares = [
    (row["silent_tokens"] + row["flat_tokens"]) / row["tokens"]
    for row in result["rows"]
    if row["tokens"]
  ]
  if max(shares, default=0) > 0:
    notes += (
      " Tokens without an active latent have no r_L0: up to"
      f" {wording.percent(max(shares))} % of an SAE's tokens."
    )
  missing = sum(row["r_l0"] is None for row in result["rows"])
  if missing:
    notes += f" Not shown: {wording.count(missing, 'SAE')} without any."
  return notes
