"""How the report words numbers, sites and facts: the same in all its parts."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemmascope_jax.report.results import Fidelity, Row, Value

# Below this many sequences a result says that it is a small sample.
SMALL_SAMPLE = 256

_SITES = {
  "res": "residual stream after block {}",
  "mlp": "MLP output of block {}",
  "att": "attention heads of block {}, before W_O",
  "mlp_in": "normalised MLP input of block {}",
}
_FAMILIES = {
  "jumprelu": "JumpReLU",
  "relu": "ReLU",
  "gated": "Gated",
  "topk": "TopK",
  "batch_topk": "BatchTopK",
}


def site(name: str) -> str:
  """A site in words: "res.5" is "residual stream after block 5"."""
  match = re.fullmatch(r"(\w+)\.(\d+)", name)
  if match is None or match[1] not in _SITES:
    return name
  return _SITES[match[1]].format(match[2])


def family(name: str) -> str:
  """An SAE family's usual spelling: "jumprelu" is "JumpReLU"."""
  return _FAMILIES.get(name, name)


def coefficient(value: float) -> str:
  """A sparsity coefficient, short: 0.0003 is "3e-4"."""
  if value == 0:
    return "0"
  mantissa, exponent = f"{value:.2e}".split("e")
  return f"{float(mantissa):g}e{int(exponent)}"


def count(number: int, noun: str) -> str:
  """A count with its noun: "1 sequence", "2,048 sequences"."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


def tokens(value: dict[str, Any]) -> str:
  """What was evaluated on, in a phrase; leaves out what is not recorded."""
  parts = []
  if "counted" in value:
    parts.append(count(value["counted"], "token"))
  elif "rows" in value:
    parts.append(count(value["rows"], "activation"))
  if "sequences" in value:
    text = count(value["sequences"], "sequence")
    if "length" in value:
      text += f" of {value['length']:,}"
    parts.append(text)
  if not parts:
    return ""
  phrase = " in ".join(parts)
  sources = value.get("sources")
  if sources:
    names = [sources] if isinstance(sources, str) else sources
    phrase += f" from {', '.join(str(name) for name in names)}"
  if "split" in value:
    phrase += f" ({str(value['split']).replace('_', ' ')})"
  return phrase


def short_names(saes: Sequence[Mapping[str, Any]]) -> list[str]:
  """Site and L0 of rows of a study; a row's name only where that is not
  enough to tell it from the others."""
  short = [
    f"{sae['site']}, L0 {sae['l0']['mean']:.0f}"
    if sae.get("l0")
    else f"{sae['site']}: {sae['name']}"
    for sae in saes
  ]
  return [
    f"{text} ({sae['name']})" if short.count(text) > 1 else text
    for text, sae in zip(short, saes, strict=True)
  ]


def row_name(row: Row) -> str:
  """A row's name, without the SAE that its L0 was matched to.

  The L0 itself stands beside it wherever this is shown.
  """
  return row.name.removesuffix(f" at the L0 of {row.of}")


def dictionary(result: Fidelity) -> str:
  """The SAEs in a phrase: "4 JumpReLU SAEs of 4,096 latents"."""
  saes = result.saes
  families = sorted({family(row.family) for row in saes})
  widths = sorted({row.width for row in saes})
  kinds = " and ".join(families) + " " if families else ""
  noun = "SAE" if len(saes) == 1 else "SAEs"
  phrase = f"{len(saes)} {kinds}{noun}"
  if widths:
    phrase += f" of {', '.join(f'{width:,}' for width in widths)} latents"
  return phrase


def decimals(values: Iterable[Value | None], scale: float = 1.0) -> int:
  """Decimals for a column by its typical standard error.

  The Particle Data Group's rule: two digits of an error that begins with 10 to
  34, one of a greater one.

  Args:
    values: a column; None where it has no number.
    scale: what the column is multiplied by before it is shown.

  Returns:
    At least 1 and at most 5; 3 if no standard error says otherwise.
  """
  errors = [
    value.stderr * scale
    for value in values
    if value is not None and value.stderr and value.stderr > 1e-9
  ]
  if not errors:
    return 3
  typical = statistics.median_low(errors)
  exponent = math.floor(math.log10(typical))
  digits = 2 if typical / 10**exponent < 3.5 else 1
  return min(5, max(1, digits - 1 - exponent))


def plus_minus(
  value: Value | None, places: int | None = None, scale: float = 1.0
) -> str:
  """A metric with its standard error: "0.1234 ± 0.0012"; "–" if None."""
  if value is None:
    return "–"
  if places is None:
    places = decimals([value], scale)
  text = f"{value.mean * scale:.{places}f}"
  if value.stderr is None:
    return text
  return f"{text} ± {value.stderr * scale:.{places}f}"


def percent(fraction: float | None, places: int = 1) -> str:
  """A fraction in percent, without the sign; "–" if None."""
  return "–" if fraction is None else f"{fraction * 100:.{places}f}"


def number(value: float) -> str:
  """A plain number of three digits, without an exponent where it can be."""
  if value == 0 or 1e-4 <= abs(value) < 1e5:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
  return f"{value:.2e}"


def headline(result: Fidelity) -> str | None:
  """The SAE nearest an L0 of 50 against the baselines, in two sentences.

  Returns:
    None if no SAE has a positive L0.
  """
  saes = [row for row in result.saes if row.l0.mean > 0]
  if not saes:
    return None
  best = min(saes, key=lambda row: abs(row.l0.mean - 50))
  text = (
    f"Nearest to 50 active latents: {best.name} with L0"
    f" {best.l0.mean:.1f}, delta loss {plus_minus(best.delta_loss)}"
    f" nats/token, FVU {plus_minus(best.fvu)}."
  )
  comparisons = [_compared(best, row) for row in _rivals(result, best)]
  if comparisons:
    text += (
      f" Its delta loss as a share of a baseline's: {', '.join(comparisons)}."
    )
  return text


def _rivals(result: Fidelity, best: Row) -> list[Row]:
  """Baselines the headline compares with, in the result's order."""
  return [
    row
    for row in result.baselines
    if row.delta_loss.mean > 0
    and row.name != "zero ablation"
    and row.of in (None, best.name)
  ]


def _compared(best: Row, row: Row) -> str:
  ratio = best.delta_loss.mean / row.delta_loss.mean
  return f"{ratio * 100:.{0 if ratio >= 0.1 else 1}f}% ({row_name(row)})"


def errors_note(result: Fidelity) -> str:
  """What the error bars are, and what counts as dead."""
  note = f"± is one standard error over {count(_sample(result), 'sequence')}"
  windows = {row.dead_after_rows for row in result.saes} - {None}
  if windows:
    rows = ", ".join(f"{window:,}" for window in sorted(windows))
    note += (
      f"; dead: silent for the last {rows} training activations (counted while"
      " training, not of the finished SAE)"
    )
  return note


def small_sample_note(result: Fidelity) -> str | None:
  """A warning if few sequences were evaluated; else None."""
  sequences = _sample(result)
  if sequences >= SMALL_SAMPLE:
    return None
  return (
    f"Small sample: {count(sequences, 'sequence')} (the paper evaluates 2,048"
    " of 1,024 tokens). Differences of less than about two standard errors"
    " may be noise."
  )


def _sample(result: Fidelity) -> int:
  return result.clean_loss.n
