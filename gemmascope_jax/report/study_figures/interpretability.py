"""Figures of the interpretability study (paper, figures 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmascope_jax.report import plotting, wording
from gemmascope_jax.report.plotting import INK, MUTED, PAPER, SERIES

_UNTRAINED = "untrained"
_LABELS = (("yes", "YES", 0), ("maybe", "MAYBE", 4), ("no", "NO", 1))
_FEW = 5  # with fewer latents a density says nothing: points only


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """The figures of one result; call inside `plotting.style()`.

  Args:
    result: as `studies.interpretability.run` returns it; with "ratings"
      (`ratings.table`) there is the figure of people's ratings as well.

  Returns:
    matplotlib figures by file stem.
  """
  figures = {
    "interpretability_correlation": correlation(result),
    "interpretability_detection": detection(result),
  }
  if result.get("ratings"):
    figures["interpretability_ratings"] = ratings(result["ratings"])
  return figures


def correlation(result: dict[str, Any]) -> Any:
  """Densities of the correlation, a row a family, baselines below (fig. 7)."""
  rows = _rows(result)
  lowest = min((float(v.min()) for _, v, *_ in rows if len(v)), default=0.0)
  left = -0.5 if lowest >= -0.5 else -1.0
  figure = plotting.blank(9.2, 2.4 + 0.92 * len(rows))
  panel = figure.subplots()
  for place, (label, values, colour, note) in enumerate(reversed(rows)):
    _density(panel, place, values, colour, left)
    text = f"{label}\n{note}"
    panel.annotate(
      text,
      (0, place),
      xycoords=("axes fraction", "data"),
      xytext=(-8, 2),
      textcoords="offset points",
      ha="right",
      va="center",
      size=9.5,
      linespacing=1.35,
    )
  panel.axvline(0, color=MUTED, linewidth=0.9)
  panel.set(xlim=(left, 1.03), ylim=(-0.4, len(rows) - 0.05), yticks=[])
  panel.grid(axis="y", visible=False)
  panel.spines["left"].set_visible(False)
  panel.set_xlabel("correlation of simulated and true activations (Pearson)")
  plotting.frame(
    figure,
    "Simulated against true activations",
    _facts(result),
    "Each point is a latent; thick line: median; diamond and bar: mean and one"
    " standard error over latents. Latents whose explanation or simulation"
    " failed are missing here and are never counted as 0; scored: share of"
    " latents that are not missing.",
  )
  return figure


def detection(result: dict[str, Any]) -> Any:
  """Detection and fuzzing as areas under the ROC curve, by family."""
  groups = result["families"]
  figure = plotting.blank(8.2, 2.5 + 0.42 * len(groups))
  panels = figure.subplots(1, 2, sharey=True)
  titles = {
    "detection": "detection: contexts in which it fires",
    "fuzzing": "fuzzing: tokens on which it fires",
  }
  for panel, (key, title) in zip(panels, titles.items(), strict=True):
    bars = [0.45, 1.0]
    for place, group in enumerate(reversed(groups)):
      if group[key] is None:
        continue
      mean, stderr = group[key]["mean"], group[key]["stderr"] or 0
      bars += [mean - stderr, mean + stderr]
      panel.errorbar(
        mean,
        place,
        xerr=stderr,
        color=_colour(groups, group["family"]),
        marker="o",
        capsize=3,
      )
    panel.axvline(0.5, color=MUTED, linewidth=1.2, linestyle=(0, (5, 3)))
    panel.set(xlim=(max(0.0, min(bars) - 0.02), max(bars) + 0.02))
    panel.set(ylim=(-0.6, len(groups) - 0.4), title=title)
    panel.set_yticks(
      range(len(groups)),
      [
        f"{_name(g['family'])}\n{wording.count(g['coverage']['scored'], 'latent')}"
        for g in reversed(groups)
      ],
    )
    panel.set_xlabel("AUROC (0.5 is chance)")
  plotting.frame(
    figure,
    "What the simulated activations tell apart",
    _facts(result),
    "Bars: one standard error over latents.",
  )
  return figure


def ratings(table: dict[str, Any]) -> Any:
  """Shares of YES, MAYBE and NO, a bar a family (fig. 6).

  Args:
    table: as `studies.interpretability.ratings.table` returns it.
  """
  groups = table["families"]
  figure = plotting.blank(2.6 + 1.5 * len(groups), 5.2)
  panel = figure.subplots()
  places = np.arange(len(groups))
  base = np.zeros(len(groups))
  for key, label, colour in _LABELS:
    shares = np.array([group[key]["mean"] for group in groups])
    panel.bar(
      places,
      shares,
      0.62,
      bottom=base,
      color=SERIES[colour],
      edgecolor=PAPER,
      label=label,
    )
    for place, share, bottom in zip(places, shares, base, strict=True):
      if share > 0.045:
        panel.annotate(
          f"{share:.2f}",
          (place - 0.16, bottom + share / 2),
          ha="center",
          va="center",
          color=PAPER if key != "maybe" else INK,
          size=9.5,
          weight="bold",
        )
    base += shares
  for place, group in zip(places, groups, strict=True):
    low, high = group["intervals"]["yes"]
    _interval(panel, place + 0.1, low, high)
    low, high = group["intervals"]["no"]
    _interval(panel, place + 0.22, 1 - high, 1 - low)
  panel.set_xticks(
    places,
    [
      f"{_name(group['family'])}\n{wording.count(group['latents'], 'latent')}"
      f"\n{wording.count(group['ratings'], 'rating')}"
      for group in groups
    ],
  )
  panel.set(ylim=(0, 1), xlim=(-0.6, len(groups) - 0.4))
  panel.set_ylabel("share of ratings")
  panel.grid(axis="x", visible=False)
  handles, labels = panel.get_legend_handles_labels()
  facts = f"{wording.count(table['ratings'], 'rating')} by"
  plotting.frame(
    figure,
    "Do people see one meaning?",
    f"{facts} {wording.count(table['raters'], 'rater')}, blind to the SAE.",
    "Bars: 95% intervals of YES (left) and of NO (right, from the top),"
    " clustered by latent.",
    legend=(handles, labels),
  )
  return figure


def _interval(panel: Any, place: float, low: float, high: float) -> None:
  middle = (low + high) / 2
  panel.errorbar(
    place, middle, yerr=(high - low) / 2, color=INK, capsize=3, linewidth=1.3
  )


def _rows(result: dict[str, Any]) -> list[tuple[str, np.ndarray, str, str]]:
  """(label, correlations, colour, note) of the families and the baselines."""
  groups = result["families"]
  rows = []
  for group in groups:
    members = [sae for sae in result["saes"] if _group(sae) == group["family"]]
    values = _values(members, lambda row: row["score"])
    coverage = group["coverage"]
    share = coverage["scored"] / max(1, coverage["latents"])
    note = f"n = {len(values):,}, scored {share:.0%}"
    if len(members) > 1:
      note = f"{len(members)} SAEs, {note}"
    colour = _colour(groups, group["family"])
    rows.append((_name(group["family"]), values, colour, note))
  trained = [sae for sae in result["saes"] if sae["kind"] != _UNTRAINED]
  others = _values(
    trained, lambda row: (row["shuffled_explanation"] or {}).get("score")
  )
  shuffled = _values(trained, lambda row: row["shuffled_activations"])
  for label, values in (
    ("another latent's\nexplanation", others),
    ("shuffled activations", shuffled),
  ):
    if len(values):
      rows.append((label, values, MUTED, f"n = {len(values):,}"))
  return rows


def _values(saes: Sequence[dict[str, Any]], pick: Any) -> np.ndarray:
  found = [pick(row) for sae in saes for row in sae["latents"]]
  return np.array([value["mean"] for value in found if value is not None])


def _density(
  panel: Any, place: int, values: np.ndarray, colour: str, left: float
) -> None:
  """A density above a line of points, with median, mean and its error."""
  if not len(values):
    return
  tall = 0.0
  if len(values) >= _FEW and np.ptp(values) > 1e-6:
    from scipy import stats

    grid = np.linspace(left, 1, 400)
    heights = stats.gaussian_kde(values)(grid)
    tall = 0.62 / heights.max()
    panel.fill_between(
      grid, place, place + heights * tall, color=colour, alpha=0.35, lw=0
    )
    panel.plot(grid, place + heights * tall, color=colour, linewidth=1.4)
  spread = np.random.default_rng(0).uniform(-0.13, 0.0, len(values))
  panel.plot(
    values,
    place - 0.06 + spread,
    marker="o",
    linestyle="none",
    color=colour,
    markersize=float(np.clip(18 / np.sqrt(len(values)), 1.2, 4)),
    alpha=0.55,
    markeredgewidth=0,
  )
  median = float(np.median(values))
  panel.plot([median] * 2, [place, place + 0.3], color=INK, linewidth=2.4)
  stderr = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
  panel.errorbar(
    values.mean(),
    place + 0.36,
    xerr=stderr,
    color=INK,
    marker="D",
    markersize=4.5,
    capsize=3,
    linewidth=1.2,
  )
  panel.annotate(
    f"{median:.2f}",
    (median, place + 0.15),
    xytext=(5, 0),
    textcoords="offset points",
    va="center",
    size=8.5,
    color=INK,
  )


def _facts(result: dict[str, Any]) -> str:
  about = result["contexts"]
  held_out = sum(about["held_out"].values())
  kinds = ", ".join(f"{n} {kind}" for kind, n in about["held_out"].items())
  return (
    f"Explained by {_who(result['explainer'])} from {about['shown']} contexts of"
    f" {about['length']} tokens; simulated by {_who(result['simulator'])} on"
    f" {held_out} held-out ones ({kinds})."
  )


def _who(about: dict[str, Any]) -> str:
  kind = str(about.get("kind", "?"))
  return f"{about['model']} ({kind})" if "model" in about else kind


def _group(sae: dict[str, Any]) -> str:
  return _UNTRAINED if sae["kind"] == _UNTRAINED else sae["family"]


def _name(family: str) -> str:
  return (
    "random-initialised" if family == _UNTRAINED else wording.family(family)
  )


def _colour(groups: Sequence[dict[str, Any]], family: str) -> str:
  if family == _UNTRAINED:
    return MUTED
  names = [g["family"] for g in groups if g["family"] != _UNTRAINED]
  return SERIES[names.index(family) % len(SERIES)]
