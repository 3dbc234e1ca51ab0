"""A circuit as a graph: tokens across, layers up, the metric on top.

A node's area is the size of its effect, its colour the sign; errors are
squares, latents circles, embedded tokens diamonds. Within one site and token
nodes stand side by side, largest first; what is beyond a dozen is counted.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from gemmascope_jax.report import plotting, token_text, wording
from gemmascope_jax.report.results import Value

SUPPORTS, OPPOSES = plotting.SERIES[0], plotting.SERIES[1]
_EMBED = "embed"
_COLUMNS = 4  # nodes of one site and token in a line
_LEAST_COLUMNS = 1.6
_SHOWN = 12  # of one site and token
_AREA = 420  # points squared, of the largest effect
_LINKS = 60


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """{"circuit": figure}, from a circuit's result alone.

  Args:
    result: of `circuits.result`.

  Raises:
    ValueError: it has no nodes: nothing differs between the prompts.
  """
  if not result["nodes"]:
    raise ValueError(
      "the circuit has no nodes: between the two prompts nothing differs that"
      " reaches the metric"
    )
  places, columns, rows, more = _layout(result)
  tokens = len(result["tokens"])
  width = max(8.4, 0.34 * columns[-1] + 1.8)
  height = 0.55 * rows["metric"] + 3.4
  figure = plotting.blank(width, height)
  panel = figure.subplots()
  _links(panel, result, places)
  _nodes(panel, result, places)
  for (x, y), count in more:
    panel.text(x, y, f"+ {count} more", ha="center", va="center", size=8)
  panel.set_xlim(columns[0] - 0.2, columns[-1] + 0.2)
  panel.set_ylim(-0.8, rows["metric"] + 0.9)
  middles = (np.array(columns[:-1]) + np.array(columns[1:])) / 2
  show = functools.partial(token_text.visible, leading=False)
  shown = [show(piece) for piece in result["tokens"]]
  if result["patch_tokens"] is not None:
    pairs = zip(shown, result["patch_tokens"], strict=True)
    shown = [
      one if one == show(other) else f"{one}\n({show(other).strip()})"
      for one, other in pairs
    ]
  panel.set_xticks(middles, shown)
  sites = [each["site"] for each in result["sites"]]
  panel.set_yticks(
    [rows[site] for site in sites] + [rows["metric"]],
    ["embedding" if site == _EMBED else site for site in sites] + ["logit"],
  )
  panel.tick_params(length=0)
  panel.grid(False)
  for edge in columns[1:tokens]:
    panel.axvline(edge, color=plotting.GRID, linewidth=0.7, zorder=0)
  for side in panel.spines.values():
    side.set_visible(False)
  plotting.frame(
    figure,
    f"What makes the model say {_metric(result)}",
    _facts(result),
    _notes(result),
    legend=_legend(panel),
  )
  return {"circuit": figure}


def _layout(result):
  """Of each shown node its point, edges of the tokens' columns, rows of sites,
  and where how many more are."""
  cells: dict[tuple[str, int], list[int]] = {}
  for number, node in enumerate(result["nodes"]):
    cells.setdefault((node["site"], node["position"]), []).append(number)
  widths = [_LEAST_COLUMNS] * len(result["tokens"])
  depths = {each["site"]: 1 for each in result["sites"]}
  for (site, token), own in cells.items():
    widths[token] = max(widths[token], min(len(own), _COLUMNS) + 0.6)
    lines = math.ceil(min(len(own), _SHOWN) / _COLUMNS)
    depths[site] = max(depths[site], lines + 0.5 * (len(own) > _SHOWN))
  columns = np.concatenate([[0.0], np.cumsum(widths)]).tolist()
  rows, bottom = {}, 0.0
  for site, depth in depths.items():
    rows[site] = bottom + (depth - 1) / 2
    bottom += depth + 0.9
  rows["metric"] = bottom + 0.2
  places, more = {}, []
  for (site, token), own in cells.items():
    middle = (columns[token] + columns[token + 1]) / 2
    shown = own[:_SHOWN]
    lines = math.ceil(len(shown) / _COLUMNS)
    top = rows[site] + (lines - 1) / 2 + 0.25 * (len(own) > _SHOWN)
    for place, number in enumerate(shown):
      line, column = divmod(place, _COLUMNS)
      in_line = min(len(shown) - line * _COLUMNS, _COLUMNS)
      places[number] = (middle + column - (in_line - 1) / 2, top - line)
    if len(own) > _SHOWN:
      more.append(((middle, top - lines + 0.15), len(own) - _SHOWN))
  last = (columns[-2] + columns[-1]) / 2
  places[None] = (last, rows["metric"])
  return places, columns, rows, more


def _colour(weight: float) -> str:
  return SUPPORTS if weight < 0 else OPPOSES


def _links(panel, result, places) -> None:
  edges = [
    edge
    for edge in result["edges"]
    if edge["source"] in places and edge["target"] in places
  ][:_LINKS]
  most = max((abs(edge["weight"]) for edge in edges), default=0) or 1
  for edge in reversed(edges):
    one, other = places[edge["source"]], places[edge["target"]]
    share = abs(edge["weight"]) / most
    panel.plot(
      *zip(one, other, strict=True),
      color=_colour(edge["weight"]),
      linewidth=0.4 + 3.2 * share,
      alpha=0.2 + 0.5 * share,
      solid_capstyle="round",
      zorder=1,
    )


def _kind(node) -> str:
  if node["site"] == _EMBED:
    return "D"
  return "s" if node["latent"] is None else "o"


def _nodes(panel, result, places) -> None:
  nodes = result["nodes"]
  most = max(abs(node["effect"]) for node in nodes) or 1
  for number, node in enumerate(nodes):
    if number not in places:
      continue
    share = abs(node["effect"]) / most
    x, y = places[number]
    panel.scatter(
      [x],
      [y],
      s=14 + _AREA * share,
      marker=_kind(node),
      color=_colour(node["effect"]),
      edgecolor=plotting.PAPER,
      linewidth=1,
      zorder=3,
    )
    if node["latent"] is not None:
      panel.annotate(
        str(node["latent"]),
        (x, y),
        xytext=(0, -5 - 0.5 * math.sqrt(14 + _AREA * share)),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=7.5,
        zorder=4,
      )
  x, y = places[None]
  panel.text(
    x,
    y,
    _metric(result),
    ha="center",
    va="center",
    weight="bold",
    zorder=4,
    bbox={
      "boxstyle": "round,pad=0.35",
      "facecolor": plotting.PAPER,
      "edgecolor": plotting.MUTED,
    },
  )


def _legend(panel):
  """Handles and words for colours and shapes."""
  from matplotlib.lines import Line2D

  make = lambda marker, colour: Line2D(
    [], [], linestyle="", marker=marker, color=colour, markersize=8
  )
  return (
    [
      make("o", SUPPORTS),
      make("o", OPPOSES),
      make("s", plotting.MUTED),
      make("D", plotting.MUTED),
    ],
    [
      "latent that supports it (patching lowers it)",
      "latent that opposes it",
      "error of an SAE",
      "embedded token",
    ],
  )


def _metric(result) -> str:
  show = lambda token: (
    f"“{token_text.visible(token['piece'], leading=False).strip()}”"
  )
  text = show(result["answer"])
  if result["wrong"] is not None:
    text += f" and not {show(result['wrong'])}"
  return text


def _facts(result) -> str:
  what = "logit" if result["wrong"] is None else "logit difference"
  facts = f"{result['model']['label']}: {what} {result['value']:.2f}"
  if result["patch_value"] is None:
    facts += ", every node against its absence"
  else:
    facts += (
      f" on the clean prompt, {result['patch_value']:.2f} on the patch prompt"
      " (its tokens in brackets)"
    )
  parts = []
  for each in result["sites"]:
    if each["site"] != _EMBED and each["all"]:
      parts.append(
        f"{each['site']} latents {each['latents']:+.2f}, errors"
        f" {each['error']:+.2f}"
      )
  if parts:
    facts += f". Summed effects of patching: {'; '.join(parts)}"
  return f"{facts}."


def _notes(result) -> str:
  how = (
    "gradients at the clean prompt"
    if not result["steps"]
    else f"integrated gradients of {result['steps']} steps"
  )
  shown = wording.count(len(result["nodes"]), "node")
  notes = (
    f"Effects by {how}; areas are their sizes. The {shown} of largest effect,"
    f" and at most {_LINKS} edges between those that are shown. Numbers are"
    " latents'."
  )
  checked = (result["agreement"] or {}).get("latents")
  if checked and checked["pearson"]["mean"] is not None:
    notes += (
      f" Against patching each of {checked['nodes']} latents alone: correlation"
      f" {wording.plus_minus(Value(**checked['pearson']), 3)}."
    )
  return notes
