"""Reads `metrics.jsonl`, one line a logged step and ensemble member, strictly.

Letters: E ensemble member (one SAE of a sweep).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os

from gemmascope_jax.report.results import ResultError, field, number

REQUIRED = ("fvu", "l0", "dead_fraction")
OPTIONAL = ("threshold_mean", "kernel_share")

_NULL = type(None)


@dataclasses.dataclass(frozen=True)
class Member:
  """One SAE's training curves.

  Attributes:
    index: its place in the sweep.
    name: as in every other result.
    sparsity_coefficient: its lambda, or None.
    steps: the logged steps, ascending.
    rows: activations seen by each logged step, or None if not logged.
    curves: metric name -> one number a logged step; NaN where the line had
      null.
  """

  index: int
  name: str
  sparsity_coefficient: float | None
  steps: tuple[int, ...]
  rows: tuple[int, ...] | None
  curves: dict[str, tuple[float, ...]]


def read_metrics(path: str | os.PathLike) -> tuple[Member, ...]:
  """Reads `metrics.jsonl` of a training run.

  Returns:
    The members in the sweep's order. `fvu`, `l0` and `dead_fraction` are in
    every line; `rows`, `threshold_mean` and `kernel_share` are kept if every
    line of the member has them.

  Raises:
    FileNotFoundError: there is none.
    ResultError: no lines, a line that is not JSON, a field that is missing,
      or steps that do not ascend (two runs in one file).
  """
  where = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"no training metrics at {where}: point the report at the folder of a"
      " training run, or at none to leave the training curves out"
    )
  lines: dict[int, list[dict]] = {}
  with open(path, encoding="utf-8") as file:
    for count, text in enumerate(file, start=1):
      line = _line(text, f"{where}, line {count}")
      logged = lines.setdefault(line["member"], [])
      if logged and line["step"] <= logged[-1]["step"]:
        raise ResultError(
          f"{where}, line {count}: step {line['step']} of member"
          f" {line['member']} comes after step {logged[-1]['step']}: two runs"
          " wrote to this file; train again in an empty folder"
        )
      logged.append(line)
  if not lines:
    raise ResultError(
      f"{where} has no lines: training logged nothing; run it again"
    )
  return tuple(_member(index, lines[index]) for index in sorted(lines))


def _line(text: str, where: str) -> dict:
  try:
    line = json.loads(text)
  except json.JSONDecodeError as error:
    raise ResultError(
      f"{where} is not valid JSON ({error}): if training was killed there,"
      " run it again and it resumes"
    ) from error
  if not isinstance(line, dict):
    raise ResultError(f"{where} is {line!r}, expected an object")
  field(line, "step", int, where)
  field(line, "member", int, where)
  field(line, "name", str, where)
  for key in REQUIRED:
    if key not in line:
      raise ResultError(
        f"{where}: {key!r} is missing (it has {', '.join(sorted(line))})"
      )
  for key in (*REQUIRED, *OPTIONAL):
    found = line.get(key)
    if isinstance(found, bool) or not isinstance(found, (int, float, _NULL)):
      raise ResultError(f"{where}: {key!r} is {found!r}, expected a number")
  return line


def _member(index: int, lines: list[dict]) -> Member:
  first = lines[0]
  names = [
    *REQUIRED,
    *(key for key in OPTIONAL if all(key in line for line in lines)),
  ]
  has_rows = all(isinstance(line.get("rows"), int) for line in lines)
  return Member(
    index=index,
    name=first["name"],
    sparsity_coefficient=number(first, "sparsity_coefficient", "", True),
    steps=tuple(line["step"] for line in lines),
    rows=tuple(line["rows"] for line in lines) if has_rows else None,
    curves={
      name: tuple(
        math.nan if line[name] is None else float(line[name]) for line in lines
      )
      for name in names
    },
  )
