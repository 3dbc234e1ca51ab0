"""A plan in numbers, as tables for the terminal and for the page."""

from __future__ import annotations

import dataclasses
import math
import textwrap

from launch.planner import feeding, paper
from launch.planner.plan import Plan, Run
from launch.planner.prediction import Prediction

_WIDTH = 96  # of notes, in the terminal


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells as they are shown; the first column is text.

  Attributes:
    title: a few words.
    head: of the columns.
    rows: of cells.
    notes: sentences below.
  """

  title: str
  head: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  notes: tuple[str, ...] = ()


def tables(plan: Plan, prediction: Prediction | None = None) -> list[Table]:
  """All tables of a plan, in order.

  Args:
    plan: what to show.
    prediction: of its first run, if it was simulated.
  """
  found = [_machine(plan), *_harvests(plan), _training(plan)]
  found += [*_feeding(plan), *_storing(plan)]
  if prediction is not None:
    found.append(_prediction(prediction))
  return [*found, _paper()]


def text(shown: Table) -> str:
  """A table for the terminal."""
  every = [*([shown.head] if any(shown.head) else ()), *shown.rows]
  widths = [max(len(row[i]) for row in every) for i in range(len(shown.head))]
  lines = [shown.title, ""]
  for row in every:
    first, *others = row
    cells = [first.ljust(widths[0])]
    cells += [
      cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)
    ]
    lines.append(("  " + "  ".join(cells)).rstrip())
  for note in shown.notes:
    lines += textwrap.wrap(
      note, _WIDTH, initial_indent="  ", subsequent_indent="    "
    )
  return "\n".join(lines)


def size(count: float) -> str:
  """Bytes as "34.2 TiB"."""
  names = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
  power = 0
  while power + 1 < len(names) and count >= 1024 ** (power + 1) * 0.9995:
    power += 1
  return f"{_digits(count / 1024**power)} {names[power]}"


def money(dollars: float) -> str:
  """Dollars as "$1,234", "$0.0015"."""
  return f"${dollars:,.0f}" if dollars >= 10 else f"${dollars:.2g}"


def duration(seconds: float) -> str:
  """Seconds as "3.2 hours"."""
  for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
    if seconds >= 2 * unit:
      return f"{_digits(seconds / unit)} {name}"
  return f"{_digits(seconds)} s"


def count(number: float) -> str:
  """A large number as "4.1e+15", a small one in full."""
  return f"{number:,.0f}" if number < 1e5 else f"{number:.3g}"


def _digits(value: float) -> str:
  """Three digits, or all before the point."""
  if value >= 100:
    return f"{value:,.0f}"
  return f"{value:.3g}"


def _machine(plan: Plan) -> Table:
  machine, chip = plan.machine, plan.machine.accelerator
  used = {each.recipe.matmul_precision for each in plan.members}
  peaks = ", ".join(
    f"{chip.peak(name) / 1e12:.4g} TFLOP/s ({name})" for name in sorted(used)
  )
  rows = [
    ("devices", f"{machine.devices} x {chip.name}"),
    ("peak of one, in training", peaks),
    ("share of the peak, training", f"{machine.utilisation:.0%}"),
    ("share of the peak, forward", f"{machine.forward_utilisation:.0%}"),
    ("memory of one", size(chip.memory)),
    ("an hour of one", f"${chip.dollars:g}"),
    ("a TiB stored for a month", f"${machine.tib_month_dollars:g}"),
    ("a server reads", f"{machine.disk_gib_s:g} GiB/s"),
    ("a server sends", f"{machine.network_gib_s:g} GiB/s"),
  ]
  return Table("Assumed: change any of it by flags", ("", ""), tuple(rows))


def _harvests(plan: Plan) -> list[Table]:
  found = []
  for made in plan.harvests:
    rows = [
      ("model", plan.lm.name),
      ("tokens through the model", count(made.tokens)),
      ("operations", f"{made.flops:.3g}"),
      ("device-hours", _digits(made.device_hours)),
      (f"time on {plan.machine.devices} device(s)", duration(made.seconds)),
    ]
    if made.site_bytes:
      each = made.site_bytes.items()
      rows += [(f"store of {name}", size(value)) for name, value in each]
      rows.append(("tokens of the rows", size(made.index_bytes)))
      rows.append(("store in all", size(made.bytes)))
      title = "Harvest: the model runs once, activations are stored"
    else:
      title = "Live: the model runs while training, nothing is stored"
    found.append(Table(title, ("", ""), tuple(rows)))
  return found


def _training(plan: Plan) -> Table:
  rows = []
  for run in plan.runs:
    for each in run.members:
      rows.append(
        (
          ": ".join(filter(None, (run.name, each.recipe.name))),
          f"{each.steps:,}",
          f"{each.step_seconds * 1000:.3g}",
          f"{each.flops:.3g}",
          _digits(each.device_hours),
          size(each.state_bytes),
          size(each.sae_bytes),
        )
      )
  notes = [f"device-hours in all, harvest included: {_all_hours(plan)}"]
  for run in plan.runs:
    held = sum(each.state_bytes + each.sae_bytes for each in run.members)
    room = plan.machine.devices * plan.machine.accelerator.memory
    notes.append(
      f"{run.name or 'training'} holds weights, moments and gradients of"
      f" {size(held)}, its batches on top; the devices have {size(room)}"
      + ("" if held < room else ": TOO LITTLE, take more --devices")
    )
    kept = run.config.train.keep_checkpoints
    states = sum(each.state_bytes for each in run.members)
    notes.append(
      f"{run.name or 'training'} keeps {kept} checkpoints,"
      f" {size(kept * states)} together"
    )
  head = ("SAE", "steps", "ms a step", "operations", "device-hours")
  return Table(
    "Training: dense steps",
    (*head, "checkpoint", "finished SAE"),
    tuple(rows),
    tuple(notes),
  )


def _all_hours(plan: Plan) -> str:
  dollars = plan.device_hours * plan.machine.accelerator.dollars
  return f"{_digits(plan.device_hours)} ({money(dollars)})"


def _feeding(plan: Plan) -> list[Table]:
  rows, notes = [], []
  for run in plan.runs:
    if run.is_live:
      continue
    fed = run.feeding
    rows.append(
      (
        f"{run.name or 'training'}, {len(run.members)} SAEs a step",
        f"{fed.step_seconds * 1000:.3g}",
        size(fed.batch_bytes),
        f"{fed.needed / 2**30:.3g}",
        f"{fed.trainers}",
        f"{fed.sent / 2**30:.3g}",
        f"{fed.servers}" if fed.enough else "none do",
      )
    )
    if not fed.enough:
      notes.append(_too_slow(run, plan))
  head = ("trainer", "ms a step", "batch", "reads, GiB/s")
  head += ("trainers of a site", "sent, GiB/s", "servers")
  title = "Reading: what keeps trainers from waiting"
  return [Table(title, head, tuple(rows), tuple(notes))] if rows else []


def _too_slow(run: Run, plan: Plan) -> str:
  return (
    f'{run.name or "training"}: with train.shuffle "bucket" batches come from'
    " one server after the other, so more servers do not help. Take"
    " --config.train.shuffle=global, or servers that read more than"
    f" {plan.machine.disk_gib_s:g} and send more than"
    f" {plan.machine.network_gib_s:g} GiB/s"
  )


def _storing(plan: Plan) -> list[Table]:
  found = []
  for made in plan.harvests:
    if not made.bytes:
      continue
    again = feeding.harvesting_dollars(made, plan.machine)
    rows = [("making the activations once more", money(again), "1")]
    for days in (10, 30, 100):
      stored = feeding.storing_dollars(made, plan.machine, days)
      ratio = f"{stored / again:.2g}" if again else "-"
      rows.append((f"storing for {days} days", money(stored), ratio))
    days = feeding.break_even_days(made, plan.machine)
    equal = f"equal after {days:,.0f} days"
    if not 0 < days < math.inf:
      free = "making them" if days == 0 else "storing"
      equal = f"never equal, as {free} is free"
    found.append(
      Table(
        "Store or make again",
        ("", "costs", "ratio"),
        tuple(rows),
        (
          f"{equal}; each further run on the same activations saves making"
          " them again",
        ),
      )
    )
  return found


def _prediction(found: Prediction) -> Table:
  scenario = found.scenario
  first = min(min(each.finished) for each in found.results)
  read = sum(each.read for each in found.results)
  sent = sum(each.sent for each in found.results)
  lost = [n for each in found.results for n in each.lost_steps]
  stopped = sum(sum(each.preemptions) for each in found.results)
  waiting = 1 - found.share("computing") - found.share("down")
  rows = [
    ("trainers, of so many sites", f"{scenario.trainers}, {scenario.services}"),
    (
      "servers of each site, in all",
      f"{found.servers}, {found.servers * scenario.services}",
    ),
    ("a trainer that never waits takes", duration(found.undisturbed)),
    ("the first is done after", duration(first)),
    ("the last is done after", duration(found.seconds)),
    ("computing, of the time", f"{found.share('computing'):.1%}"),
    ("waiting for batches", f"{max(0.0, waiting):.1%}"),
    ("preempted", f"{found.share('down'):.1%}"),
    ("preemptions", f"{stopped:,}"),
    ("steps computed again, of all", f"{_share_lost(found, lost):.2%}"),
    ("read from disks", size(read)),
    ("sent to trainers", size(sent)),
    ("read on average, each site", f"{_rate(found, 'read'):.3g} GiB/s"),
    ("sent on average, each site", f"{_rate(found, 'sent'):.3g} GiB/s"),
    (
      "busiest disk, of the time",
      f"{max(each.disk_busy for each in found.results):.0%}",
    ),
    (
      "busiest line, of the time",
      f"{max(each.network_busy for each in found.results):.0%}",
    ),
  ]
  return Table(
    "Simulated: servers and trainers as events", ("", ""), tuple(rows)
  )


def _share_lost(found: Prediction, lost: list[float]) -> float:
  return sum(lost) / (len(lost) * found.steps)


def _rate(found: Prediction, name: str) -> float:
  """GiB/s of a service, on average over services and their time."""
  rates = [getattr(each, name) / each.seconds for each in found.results]
  return sum(rates) / len(rates) / 2**30


def _paper() -> Table:
  rows = tuple(
    (
      each.what,
      f"{each.paper:.3g} {each.unit}",
      f"{each.ours:.3g} {each.unit}",
      f"{each.ours / each.paper:.3f}",
      each.note,
    )
    for each in paper.checks()
  )
  return Table(
    "The same arithmetic on Gemma Scope's figures",
    ("", "paper", "ours", "ratio", ""),
    rows,
  )
