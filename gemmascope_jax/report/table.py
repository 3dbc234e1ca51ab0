"""The results as a table: for the terminal, and the same in markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gemmascope_jax.report import wording
from gemmascope_jax.report.results import Fidelity, Row, parse_fidelity
from gemmascope_jax.report.token_text import visible


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells as they are shown.

  Attributes:
    names: a column's name, as "delta loss".
    units: a column's unit, or "".
    groups: the SAEs' rows, then the baselines'; each row one string a column.
      The first column is text, the others are numbers.
  """

  names: tuple[str, ...]
  units: tuple[str, ...]
  groups: tuple[tuple[tuple[str, ...], ...], ...]


def table(result: Fidelity) -> Table:
  """The table of a fidelity result: a row an SAE or baseline.

  Columns that say nothing are left out: family and width if all SAEs share
  them, loss recovered and dead latents if no row has them.
  """
  rows = result.rows
  columns: list[tuple[str, str, Callable[[Row], str]]] = [
    ("", "", lambda row: visible(wording.row_name(row), leading=False))
  ]
  if len({row.family for row in result.saes}) > 1:
    columns.append(("family", "", _family))
  if len({row.width for row in result.saes}) > 1:
    columns.append(("width", "latents", _width))
  columns += [
    ("L0", "per token", _metric("l0", rows)),
    ("delta loss", "nats/token", _metric("delta_loss", rows)),
    ("FVU", "fraction", _metric("fvu", rows)),
  ]
  if any(row.loss_recovered for row in rows):
    columns.append(("recovered", "% of loss", _metric("loss_recovered", rows)))
  dead = [row.dead_fraction for row in rows if row.dead_fraction is not None]
  if dead:
    places = 2 if any(0 < fraction < 0.0095 for fraction in dead) else 1
    columns.append(
      ("dead", "%", lambda row: wording.percent(row.dead_fraction, places))
    )
  groups = [
    tuple(tuple(cell(row) for _, _, cell in columns) for row in group)
    for group in (result.saes, result.baselines)
    if group
  ]
  return Table(
    names=tuple(name for name, _, _ in columns),
    units=tuple(unit for _, unit, _ in columns),
    groups=tuple(groups),
  )


def terminal_table(result: Fidelity | dict[str, Any]) -> str:
  """The table for a terminal: aligned plain text with a heading and notes.

  Args:
    result: as read by `read_fidelity`, or the JSON itself.

  Returns:
    Lines without a trailing newline.

  Raises:
    ResultError: the JSON is not a fidelity result.
  """
  result = _parsed(result)
  shown = table(result)
  every = [shown.names, shown.units, *(r for g in shown.groups for r in g)]
  widths = [max(len(row[i]) for row in every) for i in range(len(shown.names))]
  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

  def line(cells):
    text, *numbers = cells
    padded = [text.ljust(widths[0])]
    padded += [
      cell.rjust(w) for cell, w in zip(numbers, widths[1:], strict=True)
    ]
    return "  ".join(padded).rstrip()

  lines = [*_heading(result), "", line(shown.names), line(shown.units)]
  for group in shown.groups:
    lines += [rule, *(line(row) for row in group)]
  return "\n".join([*lines, rule, *_notes(result)])


def markdown_table(result: Fidelity | dict[str, Any]) -> str:
  """The same table in markdown, with the same heading and notes.

  Raises:
    ResultError: the JSON is not a fidelity result.
  """
  result = _parsed(result)
  shown = table(result)
  titles = [
    f"{name} ({unit})" if unit else name
    for name, unit in zip(shown.names, shown.units, strict=True)
  ]
  rows = [row for group in shown.groups for row in group]
  lines = [
    "  \n".join(_markdown(line) for line in _heading(result)),
    "",
    "| " + " | ".join(titles) + " |",
    "|" + "|".join([":--", *["--:"] * (len(titles) - 1)]) + "|",
    *(
      "| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows
    ),
    "",
    "  \n".join(_markdown(line) for line in _notes(result)),
  ]
  return "\n".join(lines)


def _parsed(result: Fidelity | dict[str, Any]) -> Fidelity:
  return result if isinstance(result, Fidelity) else parse_fidelity(result)


def _heading(result: Fidelity) -> list[str]:
  lines = [
    f"{wording.dictionary(result)} at {result.site} of {result.model}",
    f"evaluated on {wording.tokens(result.tokens)}",
    f"clean loss {wording.plus_minus(result.clean_loss)} nats/token",
  ]
  return [visible(line, leading=False) for line in lines]


def _notes(result: Fidelity) -> list[str]:
  note = f"{wording.errors_note(result)}; code {result.code}"
  return [visible(note, leading=False)]


def _markdown(text: str) -> str:
  for mark in "\\|*_<`":
    text = text.replace(mark, f"\\{mark}")
  return text


def _family(row: Row) -> str:
  return wording.family(row.family) if row.family else "–"


def _width(row: Row) -> str:
  return f"{row.width:,}" if row.width else "–"


def _metric(name: str, rows: tuple[Row, ...]) -> Callable[[Row], str]:
  scale = 100.0 if name == "loss_recovered" else 1.0
  # The SAEs decide how many decimals a column needs; there may be none.
  saes = [row for row in rows if row.kind == "sae"] or rows
  places = wording.decimals([getattr(row, name) for row in saes], scale)
  return lambda row: wording.plus_minus(getattr(row, name), places, scale)
