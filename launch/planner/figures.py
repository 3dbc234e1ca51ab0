"""Figures of a plan and of its simulation, in the report's look."""

from __future__ import annotations

import math
from typing import Any

from gemmascope_jax.report import plotting
from launch.planner import feeding
from launch.planner.plan import Plan
from launch.planner.prediction import Prediction


def draw(plan: Plan, prediction: Prediction | None = None) -> Any:
  """All panels in one figure; call inside `plotting.style`.

  Args:
    plan: for the panels of money and of servers.
    prediction: for those of the simulation, if there is one.
  """
  stored = [
    made
    for made in plan.harvests
    if made.bytes and 0 < feeding.break_even_days(made, plan.machine) < math.inf
  ]
  panels = [_servers]
  if stored:
    panels.insert(0, lambda axes, plan, _: _money(axes, plan, stored[0]))
  if prediction is not None:
    panels += [_over_time, _shares, _by_servers]
  columns = min(2, len(panels))
  rows = math.ceil(len(panels) / columns)
  figure = plotting.blank(5.6 * columns, 3.7 * rows)
  grid = figure.add_gridspec(rows, columns)
  for number, panel in enumerate(panels):
    row, column = divmod(number, columns)
    last = number == len(panels) - 1 and not column
    place = grid[row, :] if last else grid[row, column]
    panel(figure.add_subplot(place), plan, prediction)
  plotting.frame(figure, _title(plan), _facts(plan, prediction))
  return figure


def _title(plan: Plan) -> str:
  run = plan.runs[0]
  recipe = run.members[0].recipe
  rows = run.config.train.tokens
  return f"{plan.lm.name}, {recipe.width:,} latents, {rows / 1e9:.3g}B tokens"


def _facts(plan: Plan, prediction: Prediction | None) -> str:
  machine = plan.machine
  text = (
    f"Trainers of {machine.devices} {machine.accelerator.name} at"
    f" {machine.utilisation:.0%} of the peak"
    f" ({plan.members[0].recipe.matmul_precision} precision); servers that read"
    f" {machine.disk_gib_s:g} and send {machine.network_gib_s:g} GiB/s."
  )
  if prediction is None:
    return text
  scenario = prediction.scenario
  text += (
    f" Simulated: {scenario.trainers} trainers of {scenario.services} sites,"
    f" {prediction.servers} servers a site"
  )
  if scenario.preemption_hours:
    text += (
      f", each trainer preempted every {scenario.preemption_hours:g} hours on"
      f" average for {scenario.down_minutes:g} minutes, patience of"
      f" {scenario.patience:g} s"
    )
  if scenario.slower:
    text += f", steps up to {scenario.slower:.0%} slower"
  return text + "."


def _money(axes, plan: Plan, made) -> None:
  """What storing costs over time, against making it again."""
  even = feeding.break_even_days(made, plan.machine)
  days = [2.5 * even * i / 100 for i in range(101)]
  again = feeding.harvesting_dollars(made, plan.machine)
  colours = plotting.SERIES
  stored = [feeding.storing_dollars(made, plan.machine, day) for day in days]
  axes.plot(days, stored, color=colours[0], label="stored for so long")
  axes.axhline(again, color=colours[1], ls="--", label="made once more")
  axes.plot([even], [again], "o", color=plotting.INK)
  axes.annotate(
    f"{even:,.0f} days", (even, again), (6, -14), textcoords="offset points"
  )
  axes.set(xlabel="days", ylabel="dollars", title="Store or make again")
  axes.set(xlim=(0, days[-1]), ylim=(0, None))
  plotting.short_numbers(axes.yaxis)
  axes.legend(loc="upper left")


def _servers(axes, plan: Plan, _) -> None:
  """Servers of one site against trainers that read it, by their limits."""
  fed, machine = plan.runs[0].feeding, plan.machine
  most = max(10, 2 * fed.trainers)
  trainers = list(range(1, most + 1))
  disk = fed.read / 2**30 / machine.disk_gib_s
  line = fed.needed / 2**30 / machine.network_gib_s
  colours = plotting.SERIES
  axes.plot(
    trainers, [disk] * most, color=colours[0], label="to read each batch once"
  )
  axes.plot(
    trainers,
    [line * count for count in trainers],
    color=colours[1],
    label="to send it to all",
  )
  axes.set(xlabel="trainers of the site", ylabel="servers")
  axes.set(title="Servers that one site needs")
  axes.set(xlim=(1, most), ylim=(0, 1.25 * max(disk, line * most)))
  axes.legend(loc="upper left")


def _over_time(axes, _, prediction: Prediction) -> None:
  """Bytes a second of all services together."""
  end = prediction.seconds
  unit, name_of_it = _unit(end)
  bins = 120
  edges = [end * i / bins for i in range(bins)]
  for place, (name, colour) in enumerate(
    zip(("sent", "read"), plotting.SERIES[1::-1], strict=True)
  ):
    rates = [0.0] * bins
    for result in prediction.results:
      width = result.line[1][0] - result.line[0][0]
      for when, *both in result.line:
        _spread(rates, when - width / 2, width, both[1 - place] * width, end)
    axes.plot(
      [edge / unit for edge in edges],
      [rate / (end / bins) / 2**30 for rate in rates],
      color=colour,
      label=f"{name}, all sites",
      drawstyle="steps-post",
    )
  axes.set(xlabel=name_of_it, ylabel="GiB/s", title="Simulated: over time")
  axes.set(xlim=(0, end / unit), ylim=(0, None))
  axes.legend(loc="lower left")


def _unit(seconds: float) -> tuple[float, str]:
  """In which a run's time is shown."""
  return (86_400, "days") if seconds > 4 * 86_400 else (3600, "hours")


def _spread(rates, start: float, width: float, size: float, end: float) -> None:
  """Adds bytes of an interval to the bins that it touches."""
  bins = len(rates)
  step = end / bins
  place = int(start / step)
  while place < bins and place * step < start + width:
    low, high = max(start, place * step), min(start + width, (place + 1) * step)
    rates[place] += size * max(0.0, high - low) / width
    place += 1


def _shares(axes, _, prediction: Prediction) -> None:
  """What each trainer did with its time."""
  each = [
    (finished, computing, down)
    for result in prediction.results
    for finished, computing, down in zip(
      result.finished, result.computing, result.down, strict=True
    )
  ]
  each.sort()
  places = range(1, len(each) + 1)
  unit, name_of_it = _unit(prediction.seconds)
  total = [finished / unit for finished, _, _ in each]
  parts = {
    "computing": [t * c for t, (_, c, _) in zip(total, each, strict=True)],
    "waiting": [
      t * max(0.0, 1 - c - d) for t, (_, c, d) in zip(total, each, strict=True)
    ],
    "preempted": [t * d for t, (_, _, d) in zip(total, each, strict=True)],
  }
  below = [0.0] * len(each)
  for (name, values), colour in zip(
    parts.items(), plotting.SERIES, strict=False
  ):
    axes.bar(places, values, 0.85, bottom=below, color=colour, label=name)
    below = [a + b for a, b in zip(below, values, strict=True)]
  axes.set(xlabel="trainers, the first to finish first", ylabel=name_of_it)
  axes.set(title="Simulated: what trainers do", ylim=(0, 1.3 * max(total)))
  axes.legend(loc="upper left", ncols=3)


def _by_servers(axes, _, prediction: Prediction) -> None:
  """How much of their time trainers compute, against servers of a site."""
  from matplotlib import ticker

  counts = list(prediction.by_servers)
  shares = [100 * share for share in prediction.by_servers.values()]
  axes.plot(counts, shares, "o-", color=plotting.SERIES[0])
  axes.axvline(prediction.servers, color=plotting.MUTED, ls=":")
  axes.set(xlabel="servers of a site", ylabel="% of the time computing")
  axes.set(title="Simulated: with fewer and more servers", ylim=(0, 105))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def parts(plan: Plan, prediction: Prediction | None) -> dict[str, bytes | str]:
  """The figure as "png" bytes and as an "svg" element.

  Raises:
    ImportError: matplotlib is not installed; names the extra.
  """
  with plotting.style():
    figure = draw(plan, prediction)
    return {
      "png": plotting.png(figure),
      "svg": plotting.svg(figure, "plan"),
    }
