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
  figure = plotting.blank(12.5, 5.4)
  panels = figure.subplots(1, 3, sharey=True)
  labels = []
  for panel, (cost, label) in zip(panels, _PANELS, strict=True):
    extent = _start(panel, result["unsteered"], effect, cost)
    for number, method in enumerate(result["methods"]):
      rows = [r for r in result["rows"] if r["method"] == method["name"]]
      found = _line(panel, rows, effect, cost, method["name"], number)
      labels += [(panel, *each) for each in found]
      extent += [x for x, _, _, _ in found]
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
      extent.append(most)
    if cost != "text_loss" and extent:
      # The strongest pushes cost a thousand times what the weakest do.
      plotting.log_axis(panel.xaxis, extent, (0.06, 0.1))
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
  facts += " Strength 1: " + "; ".join(
    f"{method['name']}, {method['about']}" for method in result["methods"]
  )
  plotting.frame(
    figure,
    "Steering: effect against loss of fluency",
    facts + ".",
    "Up and to the left is better. Numbers at the points: strengths. Text loss:"
    " of the model without edits on the answers; a text that goes round in"
    " circles has a low one, so see the right panel too. Held-out loss: of the"
    " steered model on text that it did not write. Bars: one standard error over"
    " prompts, or over held-out sequences.",
    legend=panels[0].get_legend_handles_labels(),
  )
  _name_points(figure, labels)
  return figure


def _name_points(figure, labels) -> None:
  """Writes strengths at the points, but none over another."""
  figure.draw_without_rendering()  # places the panels
  taken = []
  # The strongest first: they are what a reader looks for.
  for panel, x, y, strength, colour in sorted(labels, key=lambda e: -e[3]):
    across, up = panel.transData.transform((x, y))
    if any(abs(across - a) < 22 and abs(up - b) < 13 for a, b in taken):
      continue
    taken.append((across, up))
    panel.annotate(
      f"{strength:g}",
      (x, y),
      xytext=(5, 4),
      textcoords="offset points",
      fontsize=8,
      color=colour,
    )


def _of(row, name: str, cost: bool) -> tuple[float, float] | None:
  """(value, standard error) as it is drawn; None if there is none."""
  found = row[name]
  if cost and name != "repetition":
    found = found and found["change"]
  if found is None:
    return None
  scale = 1.0 if cost and name != "repetition" else 100.0
  return found["mean"] * scale, (found["stderr"] or 0.0) * scale


def _start(panel, plain, effect: str, cost: str) -> list[float]:
  """The model without edits; returns where it stands if that is no zero."""
  y, x = _of(plain, effect, False), _of(plain, cost, True)
  if y is None:
    return []
  panel.axhline(
    y[0], color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label="unsteered"
  )
  return [x[0]] if x is not None and x[0] else []


def _line(panel, rows, effect, cost, name: str, number: int) -> list[tuple]:
  """Draws a method; returns (x, y, strength, colour) of its points."""
  points = [
    (_of(row, cost, True), _of(row, effect, False), row["strength"])
    for row in rows
  ]
  points = [point for point in points if None not in point]
  if not points:
    return []
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
  return [(x, y, strength, colour) for (x, _), (y, _), strength in points]
