"""Ways to steer against each other: effect, and what it costs in fluency."""

from __future__ import annotations

from typing import Any

from gemmascope_jax.report import plotting, steering_table
from gemmascope_jax.report.plotting import INK, MUTED

_EFFECTS = {
  "words": "answers with one of the words (%)",
  "latent": "tokens said on which the latent fires (%)",
}
_PANELS = (
  ("text_loss", "rise of the text loss (nats a token)"),
  ("held_out_loss", "rise of the held-out loss (nats a token)"),
  ("repetition", "pairs of tokens that came before (%)"),
)


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from a comparison's result alone."""
  steering_table.require(result)
  return {"steering": steering(result)}


def steering(result: dict[str, Any]) -> Any:
  """The effect against each cost; a line a method, a point a strength."""
  effect = result["effects"][0]
  figure = plotting.blank(12.5, 5.2)
  panels = figure.subplots(1, 3, sharey=True)
  plain = result["unsteered"]
  for panel, (cost, label) in zip(panels, _PANELS, strict=True):
    _start(panel, plain, effect, cost)
    for number, method in enumerate(result["methods"]):
      rows = [r for r in result["rows"] if r["method"] == method["name"]]
      _line(panel, rows, effect, cost, method["name"], number)
    most = result["budgets"].get(cost)
    if most is not None:
      panel.axvline(most, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
      panel.annotate(
        "budget",
        (most, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -2),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=MUTED,
      )
    panel.set_xlabel(label)
  panels[0].set_ylabel(_EFFECTS[effect])
  panels[0].set_ylim(bottom=min(0, panels[0].get_ylim()[0]))
  asked = result["asked"]
  facts = (
    f"{asked['samples']} answers of up to {asked['max_new_tokens']} tokens to"
    f" each of {len(asked['prompts'])} prompts, at every strength."
  )
  if asked["words"]:
    facts += f" Words: {', '.join(asked['words'])}."
  facts += " " + " ".join(
    f"{method['name'].capitalize()}: 1 is {method['about']}."
    for method in result["methods"]
  )
  plotting.frame(
    figure,
    "Steering: effect against loss of fluency",
    facts,
    "Up and to the left is better. Numbers at the points: strengths. Text loss:"
    " of the model without edits on the answers; a text that goes round in"
    " circles has a low one, so see the right panel too. Held-out loss: of the"
    " steered model on text that it did not write. Bars: one standard error over"
    " prompts, or over held-out sequences.",
    legend=panels[0].get_legend_handles_labels(),
  )
  return figure


def _of(row, name: str, cost: bool) -> tuple[float, float] | None:
  """(value, standard error) as it is drawn; None if there is none."""
  found = row[name]
  if cost and name != "repetition":
    found = found and found["change"]
  if found is None:
    return None
  scale = 1.0 if cost and name != "repetition" else 100.0
  return found["mean"] * scale, (found["stderr"] or 0.0) * scale


def _start(panel, plain, effect: str, cost: str) -> None:
  y, x = _of(plain, effect, False), _of(plain, cost, True)
  if x is not None and y is not None:
    panel.plot(
      x[0],
      y[0],
      marker="*",
      markersize=13,
      color=INK,
      linestyle="",
      zorder=5,
      label="unsteered",
    )


def _line(panel, rows, effect, cost, name: str, number: int) -> None:
  points = [
    (_of(row, cost, True), _of(row, effect, False), row["strength"])
    for row in rows
  ]
  points = [point for point in points if None not in point]
  if not points:
    return
  colour = plotting.SERIES[number % len(plotting.SERIES)]
  panel.errorbar(
    [x for (x, _), _, _ in points],
    [y for _, (y, _), _ in points],
    xerr=[error for (_, error), _, _ in points],
    yerr=[error for _, (_, error), _ in points],
    color=colour,
    marker=plotting.MARKERS[number % len(plotting.MARKERS)],
    linewidth=1.4,
    elinewidth=1,
    markersize=5,
    label=name,
  )
  for (x, _), (y, _), strength in points:
    panel.annotate(
      f"{strength:g}",
      (x, y),
      xytext=(5, 4),
      textcoords="offset points",
      fontsize=8,
      color=colour,
    )
