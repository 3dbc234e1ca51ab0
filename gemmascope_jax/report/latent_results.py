"""Reads `latents.json`: what a few dozen latents of one SAE fire on, strictly.

Letters: T tokens in a context.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from gemmascope_jax.report.results import (
  ResultError,
  check_study,
  field,
  number,
  read,
)


@dataclasses.dataclass(frozen=True)
class Context:
  """A stretch of text on which a latent fired.

  Attributes:
    pieces: T display strings, one a token, in order.
    values: T activations of the latent.
    peak: position of the strongest token within the context.
  """

  pieces: tuple[str, ...]
  values: tuple[float, ...]
  peak: int


@dataclasses.dataclass(frozen=True)
class Latent:
  """One latent.

  Attributes:
    index: its position in the dictionary.
    frequency: fraction of counted tokens on which it fires (paper, 5).
    maximum: its strongest activation anywhere in the tokens studied.
    edges: bin edges of its activation histogram, one more than `counts`.
    counts: firing tokens in each bin.
    top_logits: the tokens it promotes most, with the logit change per unit.
    bottom_logits: the tokens it suppresses most.
    contexts: strongest first.
  """

  index: int
  frequency: float
  maximum: float
  edges: tuple[float, ...]
  counts: tuple[float, ...]
  top_logits: tuple[tuple[str, float], ...]
  bottom_logits: tuple[tuple[str, float], ...]
  contexts: tuple[Context, ...]


@dataclasses.dataclass(frozen=True)
class Latents:
  """A whole latents result: one SAE's name, L0 and width, and its latents."""

  sae: str
  l0: float | None
  width: int | None
  tokens: dict[str, Any]
  latents: tuple[Latent, ...]


def read_latents(path: str | os.PathLike) -> Latents:
  """Reads `latents.json`.

  Raises:
    FileNotFoundError: there is none.
    ResultError: it is not a latents result of this format, has no latents, or
      a field is missing or not what it should be.
  """
  return parse_latents(read(path, "latents"), os.fspath(path))


def parse_latents(result: dict[str, Any], where: str = "result") -> Latents:
  """Checks a latents result that is already in memory; see `read_latents`."""
  check_study(result, "latents", where)
  sae = field(result, "sae", dict, where)
  latents = field(result, "latents", list, where)
  if not latents:
    raise ResultError(
      f"{where} has no latents: run the evaluation again with at least one"
      " latent to show"
    )
  l0 = sae.get("l0")
  if isinstance(l0, dict):  # a metric with its standard error
    l0 = number(l0, "mean", f"{where}: sae: l0")
  elif l0 is not None:
    l0 = number(sae, "l0", f"{where}: sae")
  return Latents(
    sae=field(sae, "name", str, f"{where}: sae"),
    l0=l0,
    width=field(sae, "width", int, f"{where}: sae", optional=True),
    tokens=field(result, "tokens", dict, where, optional=True) or {},
    latents=tuple(
      _latent(v, f"{where}: latents[{i}]") for i, v in enumerate(latents)
    ),
  )


def _latent(value: Any, where: str) -> Latent:
  if not isinstance(value, dict):
    raise ResultError(f"{where} is {value!r}, expected an object")
  index = field(value, "index", int, where)
  where = f"{where} (latent {index})"
  histogram = field(value, "histogram", dict, where)
  edges = _numbers(histogram, "edges", f"{where}: histogram")
  counts = _numbers(histogram, "counts", f"{where}: histogram")
  if len(edges) != len(counts) + 1:
    raise ResultError(
      f"{where}: histogram has {len(edges)} edges and {len(counts)} counts;"
      " expected one edge more than counts"
    )
  frequency = number(value, "frequency", where)
  if not 0 <= frequency <= 1:
    raise ResultError(
      f"{where}: 'frequency' is {frequency!r}, expected a fraction of tokens,"
      " 0 to 1"
    )
  contexts = field(value, "contexts", list, where)
  return Latent(
    index=index,
    frequency=frequency,
    maximum=number(value, "max", where),
    edges=edges,
    counts=counts,
    top_logits=_logits(value, "top_logits", where),
    bottom_logits=_logits(value, "bottom_logits", where),
    contexts=tuple(
      _context(c, f"{where}: contexts[{i}]") for i, c in enumerate(contexts)
    ),
  )


def _context(value: Any, where: str) -> Context:
  if not isinstance(value, dict):
    raise ResultError(f"{where} is {value!r}, expected an object")
  pieces = field(value, "pieces", list, where)
  values = _numbers(value, "values", where)
  peak = field(value, "peak", int, where)
  if len(pieces) != len(values):
    raise ResultError(
      f"{where}: {len(pieces)} pieces but {len(values)} values; expected one"
      " value a piece"
    )
  if not 0 <= peak < len(pieces):
    raise ResultError(
      f"{where}: 'peak' is {peak}, expected a position in 0..{len(pieces) - 1}"
    )
  for i, piece in enumerate(pieces):
    if not isinstance(piece, str):
      raise ResultError(f"{where}: pieces[{i}] is {piece!r}, expected a str")
  return Context(pieces=tuple(pieces), values=values, peak=peak)


def _numbers(value: dict[str, Any], key: str, where: str) -> tuple[float, ...]:
  found = field(value, key, list, where)
  return tuple(
    number({key: item}, key, f"{where}: entry {i}")
    for i, item in enumerate(found)
  )


def _logits(value: dict[str, Any], key: str, where: str):
  pairs = field(value, key, list, where)
  for i, pair in enumerate(pairs):
    if not (
      isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
    ):
      raise ResultError(
        f"{where}: {key}[{i}] is {pair!r}, expected [token, logit]"
      )
  return tuple(
    (text, number({key: logit}, key, f"{where}: entry {i}"))
    for i, (text, logit) in enumerate(pairs)
  )
