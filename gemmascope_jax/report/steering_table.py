"""Steering in a terminal: texts side by side, and a comparison as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from gemmascope_jax.report.results import ResultError
from gemmascope_jax.report.token_text import visible

_METRICS = {
  "words": ("words", "% of answers"),
  "latent": ("fires", "% of tokens"),
  "text_loss": ("text loss", "change, nats"),
  "held_out_loss": ("held-out loss", "change, nats"),
  "repetition": ("repeated", "% of pairs"),
}
_COSTS = {"text_loss": "text loss", "held_out_loss": "held-out loss"}


def columns(
  pairs: Sequence[tuple[str, str, str]],
  heads: tuple[str, str] = ("unsteered", "steered"),
  width: int = 100,
) -> str:
  """Texts beside each other, a prompt above each pair.

  Args:
    pairs: (prompt, left, right), whatever characters they hold.
    heads: what stands left and right.
    width: of the terminal; at least 40.

  Returns:
    Lines without a trailing newline.
  """
  side = (max(40, width) - 3) // 2
  lines = [f"{heads[0]:<{side}} | {heads[1]}", "-" * side + "-+-" + "-" * side]
  for number, (prompt, left, right) in enumerate(pairs):
    if number:
      lines.append("")
    lines += textwrap.wrap(f"> {_shown(prompt)}", 2 * side + 3)
    wrapped = [
      textwrap.wrap(_shown(text), side) or ["–"] for text in (left, right)
    ]
    for row in range(max(map(len, wrapped))):
      a, b = (each[row] if row < len(each) else "" for each in wrapped)
      lines.append(f"{a:<{side}} | {b}".rstrip())
  return "\n".join(lines)


def terminal_table(result: Mapping[str, Any]) -> str:
  """A comparison's numbers: every strength, and what is left at a budget.

  Raises:
    ResultError: not a result of the comparison.
  """
  require(result)
  metrics = [*result["effects"], "text_loss", "held_out_loss", "repetition"]
  head = ["method", "strength", *(_METRICS[m][0] for m in metrics)]
  units = ["", "", *(_METRICS[m][1] for m in metrics)]
  body = [["unsteered", "", *(_cell(result["unsteered"], m) for m in metrics)]]
  body += [
    [row["method"], f"{row['strength']:g}", *(_cell(row, m) for m in metrics)]
    for row in result["rows"]
  ]
  lines = aligned([head, units, *body], rules=(2, 3))
  effect = result["effects"][0]
  name, unit = _METRICS[effect]
  for cost, most in result["budgets"].items():
    some = [each for each in result["at_budget"] if each["cost"] == cost]
    first = some[0]["method"]
    lines += [
      "",
      f"Within {most:g} nats of {_COSTS[cost]}:",
      *aligned(
        [
          ["method", "strengths", name, "gain", f"lead over {first}"],
          ["", "even, odd", *[unit] * 3],
          *(
            [
              each["method"],
              ", ".join(f"{s:g}" if s else "none" for s in each["strengths"]),
              *(_percent(each[key]) for key in ("effect", "gain", "lead")),
            ]
            for each in some
          ),
        ],
        rules=(2,),
      ),
    ]
  asked = result["asked"]
  answers = asked["samples"] * len(asked["prompts"])
  lines += [
    "",
    *(f"{m['name']}: strength 1 is {m['about']}" for m in result["methods"]),
    f"± is one standard error over {len(asked['prompts'])} prompts"
    f" ({answers} answers a row), of held-out loss over sequences; the text loss"
    " of the unsteered row is a loss, below it are changes, paired."
    " Each half of the prompts is scored at the strength that the other half"
    " chose.",
  ]
  return "\n".join(lines)


def require(result: Mapping[str, Any]) -> None:
  """Raises `ResultError` for what is no comparison of ways to steer."""
  if not isinstance(result, Mapping) or result.get("study") != "steering":
    raise ResultError(
      "expected a result of the study 'steering' (steering.compare, or python"
      " -m experiments.steer --compare)"
    )


def aligned(rows: Sequence[Sequence[str]], rules: Sequence[int]) -> list[str]:
  """Rows as lines, the first column left and the others right, and rules."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for number, (first, *others) in enumerate(rows):
    if number in rules:
      lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    cells = [first.ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
    lines.append("  ".join(cells).rstrip())
  return lines


def _cell(row: Mapping[str, Any], metric: str) -> str:
  value = row[metric]
  if value is None:
    return "–"
  if metric not in _COSTS:
    return _percent(value)
  if "method" in row:
    return _number(value["change"], "+.3f")
  return _number(value, ".3f")


def _percent(value: Mapping[str, Any] | None) -> str:
  return _number(value, ".1f", 100)


def _number(value: Mapping[str, Any] | None, shape: str, scale=1) -> str:
  if value is None:
    return "–"
  text = format(value["mean"] * scale, shape)
  if value["stderr"] is None:
    return text
  return f"{text} ± {format(value['stderr'] * scale, shape.lstrip('+'))}"


def _shown(text: str) -> str:
  return visible(text, leading=False)
