"""Latents that persist over layers: shares that survive, and their scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmascope_jax.report import plotting, wording
from gemmascope_jax.report.plotting import MUTED, SERIES

_WORDS = {
  "direction": "by direction",
  "firing": "by firing",
  "both": "by both, the same pair",
}
_SCORES = {
  "direction": "decoder cosine of mutual pairs",
  "firing": "correlation of firing (phi) of mutual pairs",
}

_APART = 5.0  # per cent, between numbers beside the ends of lines


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """{"persistent": figure}, from the result of `persistence.run` alone."""
  criteria = [name for name in _SCORES if name in result["criteria"]]
  figure = plotting.blank(4.6 * (1 + len(criteria)), 5.0)
  first, *others = figure.subplots(1, 1 + len(criteria), squeeze=False)[0]
  handles = _survival(first, result)
  for panel, criterion in zip(others, criteria, strict=True):
    _scores(panel, result, criterion)
  plotting.frame(
    figure,
    "Latents that go on from layer to layer",
    _facts(result),
    _notes(result),
    legend=(handles, [_WORDS[name] for name in result["criteria"]]),
  )
  return {"persistent": figure}


def _survival(panel, result) -> list[Any]:
  sites = [each["site"] for each in result["saes"]]
  places = range(len(sites))
  handles = []
  for number, criterion in enumerate(result["criteria"]):
    shares = result["survival"][criterion]
    handles.append(
      panel.errorbar(
        places,
        [each["mean"] * 100 for each in shares],
        yerr=[(each["stderr"] or 0) * 100 for each in shares],
        color=SERIES[number],
        marker=plotting.MARKERS[number],
        capsize=3,
        elinewidth=1.2,
      )
    )
    panel.plot(
      places,
      [each * 100 for each in result["chance"][criterion]],
      color=SERIES[number],
      linestyle=":",
      linewidth=1.2,
    )
  _name_ends(panel, result, len(sites) - 1)
  panel.set_xticks(places, sites)
  panel.set_xlim(-0.2, len(sites) - 0.6)
  panel.set_ylim(0, 103)
  panel.set_ylabel(f"latents of {sites[0]} still matched (%)")
  return handles


def _name_ends(panel, result, last: int) -> None:
  """Writes the last shares beside their points, none over another."""
  ends = [
    (result["survival"][criterion][-1]["mean"] * 100, number)
    for number, criterion in enumerate(result["criteria"])
  ]
  below = -np.inf
  for share, number in sorted(ends):
    below = max(share, below + _APART)
    panel.annotate(
      f"{share:.1f}",
      (last, below),
      xytext=(7, 0),
      textcoords="offset points",
      va="center",
      color=SERIES[number],
    )


def _scores(panel, result, criterion) -> None:
  styles = plotting.sweep_styles(len(result["steps"]))
  by_name = {each["name"]: each["site"] for each in result["saes"]}
  for step, (colour, dash) in zip(result["steps"], styles, strict=True):
    found = step["scores"][criterion]
    edges = found["edges"]
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    label = f"{by_name[step['first']]} to {by_name[step['second']]}"
    panel.step(
      middles,
      found["real"],
      where="mid",
      color=colour,
      linestyle=dash,
      label=label,
    )
    panel.step(
      middles, found["chance"], where="mid", color=MUTED, linestyle=":"
    )
    panel.axvline(step["thresholds"][criterion], color=colour, linewidth=0.8)
  panel.set_xlabel(_SCORES[criterion])
  panel.set_ylabel("pairs in a bin")
  panel.set_ylim(bottom=0)
  panel.legend(loc="upper right")


def _facts(result) -> str:
  parts = []
  for step in result["steps"]:
    shares = ", ".join(
      f"{wording.percent(step['shares'][name]['mean'])} ±"
      f" {wording.percent(step['shares'][name]['stderr'])} % {_WORDS[name]}"
      f" (chance {wording.percent(step['false'][name]['mean'])} %)"
      for name in result["criteria"]
    )
    parts.append(
      f"{step['first']} to {step['second']}, {step['alive'][0]:,} latents:"
      f" {shares}"
    )
  return f"{'; '.join(parts)}."


def _notes(result) -> str:
  notes = (
    "Mutual nearest pairs above a threshold (thin lines) that at most"
    f" {wording.percent(result['alpha'])} % of latents pass by chance: decoders"
    " turned at random within their own second moments, firing shifted against"
    " the other layer's. Dotted: that chance. Bars: one standard error over"
    " latents."
  )
  if result["rows"]:
    notes += f" Firing on {wording.count(result['rows'], 'row')}."
  same = sum(sum(step["same_number"].values()) for step in result["steps"])
  if same:
    notes += (
      f" {wording.count(same, 'pair')} of the same number in both SAEs do not"
      " count: SAEs from one seed begin alike."
    )
  return notes
