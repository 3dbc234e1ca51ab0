"""The figure of a training run: what it logged, a panel a metric.

Call inside `plotting.style()`, and turn the figure into bytes there too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from gemmascope_jax.report import plotting
from gemmascope_jax.report.plotting import MUTED
from gemmascope_jax.report.training_metrics import Member

_COLUMNS = 3
_CURVES = (
  ("loss", "loss", "of a batch"),
  ("fvu", "FVU", "fraction"),
  ("l0", "L0", "active latents per token"),
  ("dead_fraction", "dead latents", "fraction"),
  ("threshold_mean", "mean threshold", "normalised activation"),
  ("kernel_share", "kernel share", "fraction of pre-activations"),
  ("rows_per_second", "speed", "tokens per second"),
)
_LOGARITHMIC = ("loss", "fvu", "l0")


def training_curves(
  members: Sequence[Member], title: str = "", facts: str = ""
) -> Any:
  """What training logged, a panel a metric and a line a member.

  The x axis is activations seen if the run logged `rows`, else steps. The last
  panel is how often latents fired at the end.

  Args:
    members: as read by `read_metrics`, at least one.
    title: one line at the top.
    facts: a paragraph below it.
  """
  shown = [c for c in _CURVES if any(c[0] in m.curves for m in members)]
  with_rates = any(member.rates for member in members)
  count = len(shown) + with_rates
  lines = math.ceil((count + 1) / _COLUMNS)
  figure = plotting.blank(10.5, 2.75 * lines + (0.9 if title else 0))
  panels = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
  styles = plotting.sweep_styles(len(members))
  for panel, (key, name, unit) in zip(panels, shown, strict=False):
    _curves(panel, key, members, styles)
    panel.set_title(name, weight="bold")
    panel.set_ylabel(unit, size=9.5, color=MUTED)
  if with_rates:
    _rates(panels[len(shown)], members, styles)
  handles, labels = panels[0].get_legend_handles_labels()
  for panel in panels[count:]:
    panel.axis("off")
  panels[count].legend(handles, labels, loc="center left", alignment="left")
  plotting.frame(figure, title, facts)
  return figure


def _curves(panel: Any, key: str, members: Sequence[Member], styles) -> None:
  """One metric; members that do not log it leave their colour out."""
  by_rows = all(member.rows is not None for member in members)
  values = []
  for member, (colour, dash) in zip(members, styles, strict=True):
    curve = member.curves.get(key, (math.nan,) * len(member.steps))
    panel.plot(
      member.rows if by_rows else member.steps,
      curve,
      color=colour,
      linestyle=dash,
      label=member.name,
      linewidth=1.6,
    )
    values += [value for value in curve if math.isfinite(value)]
  if key in _LOGARITHMIC and values:
    plotting.log_axis(panel.yaxis, values, (0.06, 0.06))
  elif max(values, default=0) > 0:
    panel.set_ylim(bottom=0)
  if key == "rows_per_second":
    plotting.short_numbers(panel.yaxis)
  panel.set_xlabel("activations seen" if by_rows else "training step")
  plotting.short_numbers(panel.xaxis)


def _rates(panel: Any, members: Sequence[Member], styles) -> None:
  """How many latents fire how often, from the rarest that do."""
  from matplotlib import ticker

  fired = []
  for member, (colour, dash) in zip(members, styles, strict=True):
    if not member.rates:
      continue
    pairs = itertools.pairwise(member.rates.edges)
    middles = [10 ** ((low + high) / 2) for low, high in pairs]
    panel.plot(
      middles,
      member.rates.counts,
      color=colour,
      linestyle=dash,
      linewidth=1.6,
    )
    both = zip(member.rates.edges, member.rates.counts, strict=False)
    fired += [10**edge for edge, count in both if count]
  panel.set_xscale("log")
  panel.set(xlim=(min(fired, default=1e-6) / 2, 1), ylim=(0, None))
  panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
  panel.set_title("firing rates at the end", weight="bold")
  panel.set_ylabel("latents", size=9.5, color=MUTED)
  panel.set_xlabel("share of tokens")
