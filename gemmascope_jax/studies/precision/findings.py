"""The paper's finding on low precision against a result of the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemmascope_jax.studies.findings import (
  AGREES,
  DISAGREES,
  UNCLEAR,
  Finding,
)

_FORMAT, _IN_FORMAT = "bfloat16", "both"
_SURE = 2.0  # standard errors
_SMALL = 0.02  # share of the delta loss that is negligible
_LOUD = 0.05  # a standard error above this share of it says nothing


def findings(result: Mapping[str, Any]) -> list[Finding]:
  """What a result says about figure 10."""
  claim = (
    "bfloat16 for SAE and language model changes delta loss negligibly (here:"
    f" by less than {_SURE:g} standard errors or less than {_SMALL:.0%} of it)."
  )
  verdicts, words = [], []
  for sae in result["saes"]:
    for row in sae["rows"]:
      if (row["format"], row["in_format"]) != (_FORMAT, _IN_FORMAT):
        continue
      verdict, seen = _compare(row, sae["float32"]["delta_loss"])
      verdicts.append(verdict)
      words.append(f"{sae['name']}: {seen}")
  if not verdicts:
    return [
      Finding("10", claim, "No SAE was measured in it with the model.", UNCLEAR)
    ]
  verdict = UNCLEAR
  if all(each == AGREES for each in verdicts):
    verdict = AGREES
  elif DISAGREES in verdicts:
    verdict = DISAGREES
  seen = "Delta loss less that in float32, nats: " + "; ".join(words) + "."
  return [Finding("10", claim, seen, verdict)]


def _compare(row, exact) -> tuple[str, str]:
  """Verdict and words of one SAE."""
  change = row["less_float32"]["delta_loss"]
  if change is None:
    if row["not_finite"] is None:
      return UNCLEAR, "float32 itself is not finite"
    return DISAGREES, f"none, as {row['not_finite']['reason']}"
  gap, error, whole = abs(change["mean"]), change["stderr"], abs(exact["mean"])
  share = f" ({gap / whole:.2%} of {exact['mean']:.3g})" if whole else ""
  seen = f"{change['mean']:+.2g}"
  if error is None:
    return UNCLEAR, f"{seen}, of one sequence{share}"
  seen += f" ± {error:.1g}{share}"
  if gap > _SURE * error and gap >= _SMALL * whole:
    return DISAGREES, seen
  return (AGREES if error <= _LOUD * whole else UNCLEAR), seen
