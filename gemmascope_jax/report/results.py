"""Reads `fidelity.json`, the result of the sparsity-fidelity study, strictly.

The report knows result files and nothing else. A file of another study, of
another format or with a hole where a number should be is an error that names
the file and the field; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from gemmascope_jax import artifacts

FORMAT = 1

_NUMBER = (int, float)


class ResultError(ValueError):
  """A result file that the report can't use."""


@dataclasses.dataclass(frozen=True)
class Value:
  """A metric with its uncertainty.

  Attributes:
    mean: the estimate, in the metric's own unit.
    stderr: one standard error over sequences, or None (a single sequence).
    n: how many sequences.
  """

  mean: float
  stderr: float | None
  n: int


@dataclasses.dataclass(frozen=True)
class Row:
  """One SAE or one baseline of the study.

  Attributes:
    name: what the row is called everywhere.
    kind: "sae" or "baseline".
    fvu: fraction of variance unexplained (paper, section 5).
    delta_loss: nats per token over the unspliced model (paper, section 5).
    l0: mean active latents per token; None where it has no meaning.
    loss_recovered: a fraction of zero ablation's loss, or None.
    dead_fraction: share of an SAE's latents that are dead, or None.
    dead_after_rows: training activations without firing that make a latent
      dead, or None.
    family: an SAE's activation, such as "jumprelu"; None for baselines.
    width: an SAE's number of latents; None for baselines.
    sparsity_coefficient: the lambda it was trained with, or None.
    train_tokens: how many activations it was trained on, or None.
    components: a PCA baseline's number of components, or None.
    of: the SAE whose L0 this baseline matches, or None.
  """

  name: str
  kind: str
  fvu: Value
  delta_loss: Value
  l0: Value | None = None
  loss_recovered: Value | None = None
  dead_fraction: float | None = None
  dead_after_rows: int | None = None
  family: str | None = None
  width: int | None = None
  sparsity_coefficient: float | None = None
  train_tokens: int | None = None
  components: int | None = None
  of: str | None = None


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """A whole sparsity-fidelity result.

  Attributes:
    model: the language model's label.
    site: such as "res.12".
    tokens: what was evaluated on: `sequences`, `counted` and more.
    code: version of the code that measured.
    clean_loss: the unspliced model's loss, nats per token.
    rows: SAEs and baselines, in the study's order.
    spectrum: PCA's (components, FVU) pairs, or None.
    provenance: everything else in the file, to be shown as it is.
  """

  model: str
  site: str
  tokens: dict[str, Any]
  code: str
  clean_loss: Value
  rows: tuple[Row, ...]
  spectrum: tuple[tuple[int, float], ...] | None
  provenance: dict[str, Any]

  @property
  def saes(self) -> tuple[Row, ...]:
    """The rows that are trained SAEs."""
    return tuple(row for row in self.rows if row.kind == "sae")

  @property
  def baselines(self) -> tuple[Row, ...]:
    """The rows that SAEs are compared with."""
    return tuple(row for row in self.rows if row.kind == "baseline")


def read_fidelity(path: str | os.PathLike) -> Fidelity:
  """Reads `fidelity.json`.

  Raises:
    FileNotFoundError: there is none; says what makes it.
    ResultError: it is not a fidelity result of this format, has no rows, or
      a field is missing or not what it should be.
  """
  return parse_fidelity(read(path, "fidelity"), os.fspath(path))


def parse_fidelity(result: dict[str, Any], where: str = "result") -> Fidelity:
  """Checks a fidelity result that is already in memory.

  Args:
    result: as written to `fidelity.json`.
    where: what errors call it.

  Raises:
    ResultError: as `read_fidelity`.
  """
  check_study(result, "fidelity", where)
  rows = field(result, "rows", list, where)
  if not rows:
    raise ResultError(
      f"{where} has no rows: nothing was evaluated; run the evaluation again"
      " with at least one SAE"
    )
  rows = tuple(_row(row, i, where) for i, row in enumerate(rows))
  if not any(row.kind == "sae" for row in rows):
    raise ResultError(
      f"{where} has {len(rows)} rows but no SAE among them: run the evaluation"
      " again with at least one SAE"
    )
  model = field(result, "model", dict, where)
  tokens = field(result, "tokens", dict, where)
  for key in ("sequences", "counted"):
    field(tokens, key, int, f"{where}: tokens")
  return Fidelity(
    model=field(model, "label", str, f"{where}: model"),
    site=field(result, "site", str, where),
    tokens=tokens,
    code=field(result, "code", str, where),
    clean_loss=_value(result, "clean_loss", where),
    rows=rows,
    spectrum=_spectrum(result, where),
    provenance={
      key: value
      for key, value in result.items()
      if key not in ("rows", "spectrum", "clean_loss")
    },
  )


def read(path: str | os.PathLike, study: str) -> dict[str, Any]:
  """Reads any study's result file and checks that it is that study's.

  Raises:
    FileNotFoundError: there is none; says what makes it.
    ResultError: not JSON, another study or another format.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"no {study} result at {os.fspath(path)}: run the evaluation"
      " (python -m experiments.evaluate) first, or point the report at the"
      " folder that holds it"
    )
  try:
    result = artifacts.read_json(path)
  except ValueError as error:
    raise ResultError(str(error)) from error
  check_study(result, study, os.fspath(path))
  return result


def check_study(result: Any, study: str, where: str) -> None:
  """Raises `ResultError` unless `result` is `study`'s, in this format."""
  found = result.get("study") if isinstance(result, dict) else None
  if found != study:
    raise ResultError(
      f"{where} is not a {study} result: its study is {found!r}; expected"
      f" {study!r}"
    )
  if result.get("format") != FORMAT:
    raise ResultError(
      f"{where} has format {result.get('format')!r}, this report reads format"
      f" {FORMAT}: use the version of the code that wrote it"
      f" ({result.get('code', 'not recorded')}), or run the evaluation again"
    )


def field(
  value: dict[str, Any],
  key: str,
  kind: type | tuple[type, ...],
  where: str,
  optional: bool = False,
) -> Any:
  """`value[key]`, checked to be of `kind`; numbers are finite.

  Args:
    value: a JSON object.
    key: the field.
    kind: what it must be; an int passes as a float, a bool as neither.
    where: what errors call the object.
    optional: whether a missing or null field is None rather than an error.

  Raises:
    ResultError: missing, of another type, or not finite.
  """
  found = value.get(key)
  if found is None:
    if optional:
      return None
    raise ResultError(
      f"{where}: {key!r} is missing (it has {', '.join(sorted(value))})"
    )
  kinds = kind if isinstance(kind, tuple) else (kind,)
  wrong = not isinstance(found, kinds)
  if isinstance(found, bool) and bool not in kinds:
    wrong = True
  if isinstance(found, float) and not math.isfinite(found):
    wrong = True
  if wrong:
    names = " or ".join(k.__name__ for k in kinds)
    raise ResultError(f"{where}: {key!r} is {found!r}, expected a {names}")
  return found


def number(
  value: dict[str, Any], key: str, where: str, optional: bool = False
) -> float | None:
  """A finite number, as `field`."""
  return field(value, key, _NUMBER, where, optional)


def _value(
  value: dict[str, Any], key: str, where: str, optional: bool = False
) -> Value | None:
  found = field(value, key, dict, where, optional)
  if found is None:
    return None
  where = f"{where}: {key}"
  stderr = number(found, "stderr", where, optional=True)
  if stderr is not None and stderr < 0:
    raise ResultError(f"{where}: 'stderr' is {stderr!r}, expected 0 or more")
  return Value(
    mean=number(found, "mean", where),
    stderr=stderr,
    n=field(found, "n", int, where),
  )


def _row(row: Any, index: int, where: str) -> Row:
  where = f"{where}: rows[{index}]"
  if not isinstance(row, dict):
    raise ResultError(f"{where} is {row!r}, expected an object")
  name = field(row, "name", str, where)
  where = f"{where} ({name})"
  kind = field(row, "kind", str, where)
  if kind not in ("sae", "baseline"):
    raise ResultError(
      f"{where}: 'kind' is {kind!r}, expected 'sae' or 'baseline'"
    )
  is_baseline = kind == "baseline"
  return Row(
    name=name,
    kind=kind,
    fvu=_value(row, "fvu", where),
    delta_loss=_value(row, "delta_loss", where),
    l0=_value(row, "l0", where, optional=is_baseline),
    loss_recovered=_value(row, "loss_recovered", where, optional=True),
    dead_fraction=number(row, "dead_fraction", where, optional=True),
    dead_after_rows=field(row, "dead_after_rows", int, where, optional=True),
    family=field(row, "family", str, where, optional=is_baseline),
    width=field(row, "width", int, where, optional=is_baseline),
    sparsity_coefficient=number(row, "sparsity_coefficient", where, True),
    train_tokens=field(row, "train_tokens", int, where, optional=True),
    components=field(row, "components", int, where, optional=True),
    of=field(row, "of", str, where, optional=True),
  )


def _spectrum(result: dict[str, Any], where: str):
  found = field(result, "spectrum", dict, where, optional=True)
  if found is None:
    return None
  where = f"{where}: spectrum"
  components = field(found, "components", list, where)
  fvu = field(found, "fvu", list, where)
  if len(components) != len(fvu) or not fvu:
    raise ResultError(
      f"{where}: {len(components)} components but {len(fvu)} FVUs; expected"
      " as many of each, at least one"
    )
  return tuple(
    (
      field({"components": count}, "components", int, f"{where}: entry {i}"),
      number({"fvu": unexplained}, "fvu", f"{where}: entry {i}"),
    )
    for i, (count, unexplained) in enumerate(zip(components, fvu, strict=True))
  )
