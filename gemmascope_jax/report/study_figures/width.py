"""The width study's figures (paper, figures 4 and 5, and what width does)."""

from __future__ import annotations

import math
from typing import Any

from gemmascope_jax.report import plotting, wording
from gemmascope_jax.report.plotting import INK, MUTED
from gemmascope_jax.report.study_figures import frequency

_CLASSES = {
  "novel": "#009e73",
  "split": "#0072b2",
  "kept": "#56b4e9",
  "absent": "#e69f00",
  "dead": "#dfe2e7",
}
_WORDS = {
  "novel": "novel: lowers the narrow SAE's error",
  "split": "split: one of several of a narrow latent's direction",
  "kept": "kept: the only one of its direction",
  "absent": "absent: another direction, without use to the narrow SAE",
  "dead": "dead: never fires",
}


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from a width result alone."""
  figures = {
    "width_fidelity": fidelity(result),
    "width_frequency": frequencies(result),
    "width_splitting": splitting(result),
  }
  if any("refused" not in ladder["law"] for ladder in result["ladders"]):
    figures["width_dark_matter"] = dark_matter(result)
  return figures


def _where(result: dict[str, Any]) -> str:
  return (
    f"{wording.site(result['site']).capitalize()}, on"
    f" {wording.tokens(result['tokens'])}."
  )


def fidelity(result: dict[str, Any]) -> Any:
  """FVU, and delta loss where it is known, against L0; a line a width."""
  saes = [sae for sae in result["saes"] if sae["l0"]["mean"] > 0]
  metrics = [("fvu", "FVU")]
  if all("delta_loss" in sae for sae in saes):
    metrics.insert(0, ("delta_loss", "delta loss (nats a token)"))
  widths = sorted({sae["width"] for sae in saes})
  styles = dict(zip(widths, plotting.sweep_styles(len(widths)), strict=True))
  height = 4.7 + 0.2 * math.ceil(len(widths) / 3)
  figure = plotting.blank(5.4 * len(metrics) + 0.8, height)
  panels = figure.subplots(1, len(metrics), squeeze=False)[0]
  for panel, (metric, label) in zip(panels, metrics, strict=True):
    extent = []
    for width in widths:
      some = [sae for sae in saes if sae["width"] == width]
      some.sort(key=lambda sae: sae["l0"]["mean"])
      colour, dash = styles[width]
      errors = [sae[metric]["stderr"] or 0.0 for sae in some]
      values = [sae[metric]["mean"] for sae in some]
      panel.errorbar(
        [sae["l0"]["mean"] for sae in some],
        values,
        yerr=errors,
        color=colour,
        linestyle=dash,
        marker="o",
        markersize=5,
        elinewidth=1,
        label=f"{width:,} latents",
      )
      for value, error in zip(values, errors, strict=True):
        extent += [value, value + error, max(value - error, value / 4)]
    plotting.log_axis(
      panel.xaxis, [sae["l0"]["mean"] for sae in saes], (0.1, 0.1)
    )
    plotting.log_axis(panel.yaxis, extent, (0.06, 0.06))
    panel.set_xlabel("L0 (active latents a token)")
    panel.set_ylabel(label)
  where = _where(result)
  if len(metrics) > 1:
    held_out = max(sae["delta_loss"]["n"] for sae in saes)
    where += f" Delta loss: on {wording.count(held_out, 'held-out sequence')}."
  plotting.frame(
    figure,
    "Wider dictionaries",
    where,
    "Bars: one standard error over sequences; SAEs share their text, so they"
    " differ by less than their bars say.",
    legend=panels[0].get_legend_handles_labels(),
  )
  return figure


def frequencies(result: dict[str, Any]) -> Any:
  """Firing frequencies, a panel a ladder, a line a width."""
  ladders = result["ladders"]
  by_name = {sae["name"]: sae for sae in result["saes"]}
  figure = plotting.blank(max(6.8, 5.2 * len(ladders)), 5.2)
  panels = figure.subplots(1, len(ladders), squeeze=False, sharey=True)[0]
  for panel, ladder in zip(panels, ladders, strict=True):
    saes = [by_name[name] for name in ladder["saes"]]
    frequency.histograms(
      panel,
      result["bins"],
      saes,
      plotting.sweep_styles(len(saes)),
      result["tokens"]["counted"],
      [f"{sae['width']:,} latents" for sae in saes],
    )
    if len(ladders) > 1:
      panel.set_title(ladder["label"])
  plotting.frame(
    figure,
    "How often latents of each width fire",
    _where(result),
    "Share of tokens on which a latent is active, in bins of a fifth of a"
    " decade; dead latents are left out. The dotted line is 10 %.",
    legend=panels[0].get_legend_handles_labels(),
  )
  return figure


def splitting(result: dict[str, Any]) -> Any:
  """What the latents of each wider SAE are to the narrower one."""
  steps = [step for ladder in result["ladders"] for step in ladder["steps"]]
  names = [
    f"{a:,} to {b:,}"
    + (f", {ladder['label']}" if len(result["ladders"]) > 1 else "")
    for ladder in result["ladders"]
    for a, b in (step["widths"] for step in ladder["steps"])
  ]
  figure = plotting.blank(11.0, 5.4 + 0.28 * len(steps))
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
  styles = plotting.sweep_styles(len(steps))
  for step, name, (colour, dash) in zip(steps, names, styles, strict=True):
    edges = step["cosine"]["edges"]
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    for kind, look in (
      ("wide", {"label": name, "linestyle": dash}),
      ("null", {"linewidth": 1, "linestyle": ":", "alpha": 0.8}),
    ):
      counts = step["cosine"][kind]
      total = sum(counts) or 1
      share = [count / total * 100 for count in counts]
      left.plot(middles, share, color=colour, **look)
  left.axvline(steps[0]["threshold"], color=MUTED, linewidth=1)
  left.set_xlabel("largest decoder cosine with a narrow latent")
  left.set_ylabel("share of firing wide latents (%)")
  left.set_ylim(bottom=0)
  below = {"loc": "upper left", "bbox_to_anchor": (0, -0.16), "fontsize": 9}
  left.legend(**below)
  for row, step in enumerate(steps):
    start = 0.0
    for kind, colour in _CLASSES.items():
      value = step["classes"][kind]
      share = value["mean"] * 100
      right.barh(row, share, left=start, color=colour, height=0.6)
      if value["stderr"] and share > 2:
        right.errorbar(
          start + share, row, xerr=value["stderr"] * 100, color=INK, capsize=3
        )
      if share > 7:
        right.text(
          start + share / 2, row, f"{share:.0f}", ha="center", va="center"
        )
      start += share
  right.set_yticks(range(len(steps)), names)
  right.invert_yaxis()
  right.set_xlim(0, 100)
  right.set_xlabel("share of the wide SAE's latents (%)")
  right.grid(False)
  import matplotlib.patches

  handles = [matplotlib.patches.Patch(color=c) for c in _CLASSES.values()]
  right.legend(handles, [_WORDS[kind] for kind in _CLASSES], **below)
  plotting.frame(
    figure,
    "What becomes of latents in a wider dictionary",
    _where(result),
    "Left: dotted, random directions with the wide decoder's covariance; the"
    " line is the cosine from which a latent counts as familiar. Right: each"
    " wide latent put into the narrow SAE alone; bars: one standard error by"
    " resampling groups of sequences.",
  )
  return figure


def dark_matter(result: dict[str, Any]) -> Any:
  """FVU against width, with the law that was fitted."""
  by_name = {sae["name"]: sae for sae in result["saes"]}
  figure = plotting.blank(7.6, 5.0)
  panel = figure.subplots()
  ladders = [
    ladder for ladder in result["ladders"] if "refused" not in ladder["law"]
  ]
  styles = plotting.sweep_styles(len(ladders))
  values, notes = [], []
  for ladder, (colour, _) in zip(ladders, styles, strict=True):
    saes = [by_name[name] for name in ladder["saes"]]
    law = ladder["law"]
    widths = [sae["width"] for sae in saes]
    panel.errorbar(
      widths,
      [sae["fvu"]["mean"] for sae in saes],
      yerr=[sae["fvu"]["stderr"] or 0 for sae in saes],
      color=colour,
      linestyle="none",
      marker="o",
      label=ladder["label"],
    )
    panel.plot(widths, law["fitted"], color=colour)
    panel.axhspan(
      law["a"]["low"], law["a"]["high"], color=colour, alpha=0.1, linewidth=0
    )
    values += [sae["fvu"]["mean"] for sae in saes]
    notes.append(
      f"{ladder['label']}: a = {law['a']['value']:.3g}"
      f" ({law['a']['low']:.2g} to {law['a']['high']:.2g}),"
      f" c = {law['c']['value']:.2g}"
      f" ({law['c']['low']:.2g} to {law['c']['high']:.2g})"
    )
  panel.set_xscale("log", base=2)
  panel.set_xticks(widths, [f"{width:,}" for width in widths])
  panel.minorticks_off()
  panel.set_ylim(0, max(values) * 1.15)
  panel.set_xlabel("latents")
  panel.set_ylabel("FVU")
  plotting.frame(
    figure,
    "What error remains at every width",
    _where(result),
    "Lines: FVU = a + b M^-c; shade: where a lies with 90 %. "
    + "; ".join(notes)
    + ".",
    legend=panel.get_legend_handles_labels(),
  )
  return figure
