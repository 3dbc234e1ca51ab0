"""Reads `metrics.jsonl`, one line a logged step and member, strictly."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence

from gemmascope_jax.report.results import ResultError, field, number

REQUIRED = ("fvu", "l0", "dead_fraction")
OPTIONAL = ("loss", "threshold_mean", "kernel_share", "rows_per_second")
ORDER = "members.json"

_NULL = type(None)


@dataclasses.dataclass(frozen=True)
class Rates:
  """How often latents fired at last, in bins equal in log10 of the rate.

  Attributes:
    edges: log10 of the bins' ends, ascending, one more than bins.
    counts: latents in each bin.
    never: latents that did not fire.
  """

  edges: tuple[float, ...]
  counts: tuple[int, ...]
  never: int


@dataclasses.dataclass(frozen=True)
class Member:
  """One SAE's training curves.

  Attributes:
    name: as in every other result.
    sparsity_coefficient: its lambda, or None.
    steps: the logged steps, ascending.
    rows: activations seen by each logged step, or None if not logged.
    curves: metric name -> one number a logged step; NaN where the line had
      null.
    rates: of the last line, or None if not logged.
  """

  name: str
  sparsity_coefficient: float | None
  steps: tuple[int, ...]
  rows: tuple[int, ...] | None
  curves: dict[str, tuple[float, ...]]
  rates: Rates | None


def read_metrics(path: str | os.PathLike) -> tuple[Member, ...]:
  """Reads `metrics.jsonl` of a training run.

  A last line that is not whole yet is left out.

  Returns:
    The members, in the order of the `members.json` beside it and only those
    that it names; without one, all, in the order in which they began. `fvu`,
    `l0` and `dead_fraction` are in every line; what else there is of `OPTIONAL`
    is kept if every line of the member has it.

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
  lines: dict[str, list[dict]] = {}
  with open(path, encoding="utf-8") as file:
    for count, text in enumerate(file, start=1):
      if not text.endswith("\n"):
        break  # being written, or cut off by a kill
      line = _line(text, f"{where}, line {count}")
      logged = lines.setdefault(line["name"], [])
      if logged and line["step"] <= logged[-1]["step"]:
        raise ResultError(
          f"{where}, line {count}: step {line['step']} of {line['name']} comes"
          f" after step {logged[-1]['step']}: two runs wrote to this file; train"
          " again in an empty folder"
        )
      logged.append(line)
  names = [name for name in _asked_for(path, list(lines)) if name in lines]
  if not names:
    raise ResultError(
      f"{where} has no lines: training logged nothing; run it again"
    )
  return tuple(_member(name, lines[name], where) for name in names)


def _asked_for(path: str | os.PathLike, names: list[str]) -> Sequence[str]:
  """The members that the run consists of now."""
  order = pathlib.Path(path).with_name(ORDER)
  if not order.is_file():
    return names
  return [member["name"] for member in json.loads(order.read_text())]


def _line(text: str, where: str) -> dict:
  try:
    line = json.loads(text)
  except json.JSONDecodeError as error:
    raise ResultError(f"{where} is not valid JSON ({error})") from error
  if not isinstance(line, dict):
    raise ResultError(f"{where} is {line!r}, expected an object")
  field(line, "step", int, where)
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


def _member(name: str, lines: list[dict], where: str) -> Member:
  first, last = lines[0], lines[-1]
  names = [
    *REQUIRED,
    *(key for key in OPTIONAL if all(key in line for line in lines)),
  ]
  has_rows = all(isinstance(line.get("rows"), int) for line in lines)
  return Member(
    name=name,
    sparsity_coefficient=number(first, "sparsity_coefficient", "", True),
    steps=tuple(line["step"] for line in lines),
    rows=tuple(line["rows"] for line in lines) if has_rows else None,
    curves={
      name: tuple(
        math.nan if line[name] is None else float(line[name]) for line in lines
      )
      for name in names
    },
    rates=_rates(last, where) if "firing_rates" in last else None,
  )


def _rates(line: dict, where: str) -> Rates:
  where = f"{where}, firing_rates of {line['name']}"
  found = field(line, "firing_rates", dict, where)
  counts = field(found, "counts", list, where)
  low, high = (number(found, key, where) for key in ("from", "to"))
  step = (high - low) / max(len(counts), 1)
  return Rates(
    edges=tuple(low + step * i for i in range(len(counts) + 1)),
    counts=tuple(int(count) for count in counts),
    never=field(found, "never", int, where),
  )
