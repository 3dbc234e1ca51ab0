"""What number formats change, and what they save (paper, figure 10)."""

from __future__ import annotations

import math
import statistics
from typing import Any

from gemmascope_jax.report import plotting, wording
from gemmascope_jax.report.plotting import INK, MUTED

_PARTS = {"sae": "SAE", "lm": "model", "both": "both"}
_SPREAD = 0.6  # of a line's height, for its SAEs
_TICKS = 5  # to one side of 0, at most


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from a precision result alone."""
  return {"precision": precision(result)}


def precision(result: dict[str, Any]) -> Any:
  """Differences to float32, flips and memory; a line a format, a mark an SAE.

  Formats are grouped by what is in them: the SAE, the model, or both.
  """
  saes = result["saes"]
  lines = _lines(saes)
  legend_rows = math.ceil(len(saes) / 3)
  height = 3.0 + 0.2 * legend_rows + 0.36 * len(lines)
  figure = plotting.blank(12.0, height)
  panels = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1.15, 0.85))
  changes, switched, memory = panels
  for number, (sae, style) in enumerate(zip(saes, _styles(saes), strict=True)):
    shift = _SPREAD * ((number + 0.5) / len(saes) - 0.5)
    at = {line: y + shift for y, line in enumerate(lines)}
    _marks(changes, sae, at, style, _change, 1)
    _marks(switched, sae, at, style, lambda row: row["flips"], 100)
  _signed_log(changes, [_change(row) for s in saes for row in s["rows"]], 1)
  _signed_log(switched, [row["flips"] for s in saes for row in s["rows"]], 100)
  changes.set_xlabel("delta loss less that in float32 (nats a token)")
  switched.set_xlabel("flips (% of active latents)")
  _not_finite(changes, saes, lines)
  _memory(memory, result, lines)
  changes.set_yticks(
    range(len(lines)),
    [f"{_PARTS[part]} in {format}" for part, format in lines],
  )
  for panel in panels:
    panel.set_ylim(len(lines) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    for y, (one, other) in enumerate(zip(lines, lines[1:], strict=False)):
      if one[0] != other[0]:
        panel.axhline(y + 0.5, color=MUTED, linewidth=0.8)
  plotting.frame(
    figure,
    "Low precision",
    f"On {wording.tokens(result['tokens'])}." if "tokens" in result else "",
    "Left: paired by sequence, so that the text cancels; bars: one standard"
    " error over sequences. Middle: latents that switch on or off, of a hundred"
    " that are active in float32. Both axes are logarithmic but around 0. Right:"
    " what weights take, medians over SAEs. int8 and int4 are of weights alone,"
    " and computed in float32." + _timed(result),
    legend=_legend(saes),
  )
  return figure


def _lines(saes) -> list[tuple[str, str]]:
  """(part, format) of each line from the top."""
  found = {(row["in_format"], row["format"]) for s in saes for row in s["rows"]}
  order = [row["format"] for s in saes for row in s["rows"]]
  return sorted(
    found, key=lambda line: (list(_PARTS).index(line[0]), order.index(line[1]))
  )


def _styles(saes) -> list[dict[str, str]]:
  if len(saes) <= len(plotting.SERIES):
    looks = zip(plotting.SERIES, plotting.MARKERS, strict=True)
    return [{"color": c, "marker": m} for c, m in looks][: len(saes)]
  return [
    {"color": colour, "marker": plotting.MARKERS[i % len(plotting.MARKERS)]}
    for i, (colour, _) in enumerate(plotting.sweep_styles(len(saes)))
  ]


def _label(sae) -> str:
  l0 = sae["float32"]["l0"]
  where = sae["site"] + (f", L0 {l0['mean']:.0f}" if l0 else "")
  return f"{where}: {sae['name']}"


def _legend(saes) -> tuple[list[Any], list[str]]:
  from matplotlib.lines import Line2D

  looks = {"linestyle": "none", "markersize": 5}
  handles = [Line2D([], [], **style, **looks) for style in _styles(saes)]
  return handles, [_label(sae) for sae in saes]


def _change(row) -> dict[str, Any] | None:
  return row["less_float32"]["delta_loss"]


def _marks(panel, sae, at, style, of, scale) -> None:
  """An SAE's estimates, each on its line, but for those that are None."""
  found = [
    (of(row), at[row["in_format"], row["format"]]) for row in sae["rows"]
  ]
  found = [(value, y) for value, y in found if value is not None]
  panel.errorbar(
    [scale * value["mean"] for value, _ in found],
    [y for _, y in found],
    xerr=[scale * (value["stderr"] or 0) for value, _ in found],
    linestyle="none",
    markersize=5,
    elinewidth=1.2,
    **style,
  )


def _signed_log(panel, values, scale) -> None:
  """A logarithmic axis to both sides of 0, linear between their first ticks.

  It begins where the values do, but for some that are far smaller.
  """
  known = [value for value in values if value is not None]
  sizes = sorted(scale * abs(v["mean"]) for v in known if v["mean"]) or [1.0]
  ends = [
    scale * (v["mean"] + sign * (v["stderr"] or 0))
    for v in known
    for sign in (-1, 1)
  ]
  first = math.floor(math.log10(sizes[len(sizes) // 8]))
  last = max(first + 1, math.ceil(math.log10(max(map(abs, [*ends, *sizes])))))
  panel.set_xscale("symlog", linthresh=10.0**first)
  step = math.ceil((last - first + 1) / _TICKS)
  ticks = [10.0**power for power in range(first, last + 1, step)]
  low = min([0.0, *ends])
  negative = [tick for tick in ticks if tick <= -1.5 * low]
  if len(negative) > 1:
    negative = negative[1:]  # the first is too near its twin
  signed = [*(-tick for tick in reversed(negative)), 0.0, *ticks]
  panel.set_xticks(signed, [_tick(each) for each in signed])
  panel.minorticks_off()
  room = 10.0**first / 3
  left = 1.6 * low if low < -(10.0**first) else low - room
  panel.set_xlim(left, 1.6 * max([10.0**first, *ends]))
  panel.axvline(0, color=INK, linewidth=0.8)


def _tick(value: float) -> str:
  if not 0 < abs(value) < 0.01:
    return f"{value:g}"
  return ("-" if value < 0 else "") + wording.coefficient(abs(value))


def _not_finite(panel, saes, lines) -> None:
  """Says on a line for how many SAEs there is no number."""
  for y, line in enumerate(lines):
    rows = [
      row
      for sae in saes
      for row in sae["rows"]
      if (row["in_format"], row["format"]) == line
    ]
    bad = sum(row["not_finite"] is not None for row in rows)
    if bad:
      whose = "" if bad == len(rows) else f" for {bad} of {len(rows)} SAEs"
      panel.text(
        0.98,
        y,
        f"not finite{whose}",
        transform=panel.get_yaxis_transform(),
        ha="right",
        va="center",
        color=MUTED,
      )


def _memory(panel, result, lines) -> None:
  """What SAE, model or both take, as a share of float32; in words the rest."""
  saes, models = result["saes"], {m["format"]: m for m in result["lm"]}
  median = lambda key, format: statistics.median(s[key][format] for s in saes)
  for y, (part, format) in enumerate(lines):
    held = base = 0.0
    if part != "lm":
      held, base = median("bytes", format), median("bytes", "float32")
    if part != "sae":
      held += models[format]["bytes"]
      base += models["float32"]["bytes"]
    share = 100 * held / base
    panel.barh(y, share, height=0.5, color=plotting.SERIES[5])
    text = _size(held)
    if part == "sae":
      time = median("seconds_per_1024_tokens", format)
      text += f", {wording.number(1e3 * time)} ms"
    panel.text(share + 2, y, text, va="center", size=9)
  panel.set_xlim(0, 118)
  panel.set_xticks([0, 25, 50, 100])
  panel.set_xlabel("memory (% of float32)")


def _size(held: float) -> str:
  for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
    if held >= unit:
      return f"{wording.number(held / unit)} {name}"
  return f"{held:.0f} B"


def _timed(result) -> str:
  before = statistics.median(
    sae["seconds_per_1024_tokens"]["float32"] for sae in result["saes"]
  )
  return (
    f" Times: an SAE's for {result['speed']['tokens']:,} tokens on"
    f" {result['speed']['device']}; in float32 {wording.number(1e3 * before)}"
    " ms."
  )
