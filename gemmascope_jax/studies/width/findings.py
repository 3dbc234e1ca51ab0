"""The paper's findings on width against a result of the width study."""

from __future__ import annotations

from typing import Any

from gemmascope_jax.studies import frequency
from gemmascope_jax.studies.findings import (
  AGREES,
  DISAGREES,
  UNCLEAR,
  Finding,
)


def findings(result: dict[str, Any]) -> list[Finding]:
  """Fidelity at equal L0, the mode of the frequencies, the dense cluster."""
  return [
    _fidelity(result["equal_l0"]),
    _mode(result["ladders"]),
    frequency.dense_cluster(result["saes"]),
  ]


def _fidelity(comparisons: list[dict[str, Any]]) -> Finding:
  seen = "; ".join(
    f"{each['narrow']:,} to {each['wide']:,} latents at L0 {each['l0']:.1f}:"
    f" FVU {_signed(each['log_fvu'])} in natural logarithms"
    for each in comparisons
  )
  return Finding(
    figure="4",
    claim="At equal L0 a wider SAE reconstructs better.",
    seen=seen or "no two widths have SAEs around a common L0.",
    verdict=_verdict([each["log_fvu"] for each in comparisons]),
  )


def _mode(ladders: list[dict[str, Any]]) -> Finding:
  changes = [
    change
    for ladder in ladders
    for change in ladder["mode_changes"]
    if change["decades"]
  ]
  seen = "; ".join(
    f"{change['narrow']} to {change['wide']}: {_signed(change['decades'])}"
    for change in changes
  )
  return Finding(
    figure="5",
    claim="The commonest firing frequency is lower in a wider SAE.",
    seen=f"{seen} decades." if seen else "too few latents fire.",
    verdict=_verdict([change["decades"] for change in changes]),
  )


def _verdict(changes: list[dict[str, Any]]) -> str:
  """Whether all known changes are below zero."""
  known = [
    change["mean"] < 0
    for change in changes
    if change["stderr"] is not None
    and abs(change["mean"]) > 2 * change["stderr"]
  ]
  if not known:
    return UNCLEAR
  return AGREES if all(known) else DISAGREES


def _signed(value: dict[str, Any]) -> str:
  error = "?" if value["stderr"] is None else f"{value['stderr']:.2g}"
  return f"{value['mean']:+.3f} ± {error}"
