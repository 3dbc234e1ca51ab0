"""Reconstruction and loss against the position in a sequence (paper 4.2).

Figures 3 and 15. The reconstruction loss of a position is the FVU's numerator
there over its denominator everywhere,

  r_t = E_s ||x_st - x_hat_st||^2 / E ||x - mean||^2,

so that positions can be compared. Single positions are noisy; bins whose ends
grow geometrically are given beside them.

Letters: S sequences, T tokens, P positions or bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmascope_jax.studies.estimate import Estimate, paired_difference, ratio
from gemmascope_jax.studies.findings import (
  AGREES,
  DISAGREES,
  UNCLEAR,
  Finding,
)
from gemmascope_jax.studies.records import SiteRecord, SpliceRecord

STUDY = "position"
_GROWTH = 1.25  # of one bin's end over the one before
_SURE = 2.0  # standard errors
# Positions that are compared: the first, and where the paper's curves are flat
# or at their peak.
_FIRST, _PEAK, _LATE = (1, 4), (6, 20), (100, None)


def by_position(site: SiteRecord, spliced: SpliceRecord) -> dict[str, Any]:
  """Curves of one SAE.

  Args:
    site: of all sequences.
    spliced: what the SAE does there.

  Returns:
    JSON-ready: for "positions" and for "bins" lists of equal length: "first"
    and "last" (positions, BOS being 0), and "reconstruction" and "delta_loss"
    with "..._stderr" over sequences; None where nothing counts.
  """
  length = site.keep.shape[1]
  single = [(t, t + 1) for t in range(1, length)]
  return {
    "positions": _curve(site, spliced, single),
    "bins": _curve(site, spliced, bins(length)),
    "contrasts": _contrasts(site, spliced),
  }


def bins(length: int) -> list[tuple[int, int]]:
  """[first, end) of bins of positions 1 .. length - 1, each a quarter longer
  than what is before it, and at least one position."""
  found, start = [], 1
  while start < length:
    end = min(length, max(start + 1, round(start * _GROWTH)))
    found.append((start, end))
    start = end
  return found


def _curve(site, spliced, spans) -> dict[str, list]:
  curve: dict[str, list] = {"first": [], "last": []}
  for name in ("reconstruction", "delta_loss"):
    curve |= {name: [], f"{name}_stderr": []}
  for first, end in spans:
    curve["first"].append(first)
    curve["last"].append(end - 1)
    for name, found in (
      ("reconstruction", _reconstruction(site, spliced, first, end)),
      ("delta_loss", _delta_loss(site, spliced, first, end)),
    ):
      curve[name].append(found and found.mean)
      curve[f"{name}_stderr"].append(found and found.stderr)
  return curve


def _sums(values, mask, first, end) -> tuple[np.ndarray, np.ndarray]:
  """([S], [S]): sums over counted positions of a span, and how many."""
  mask = mask[:, first:end]
  values = np.asarray(values[:, first:end], np.float64)
  return np.where(mask, values, 0).sum(axis=1), mask.sum(axis=1)


def _errors(site, spliced, first, end):
  """As `_sums`, of squared errors in units of the variance of a token."""
  token = site.variance().sum() / site.count.sum()
  total, count = _sums(spliced.squared_error, site.keep, first, end)
  return total / token, count


def _rises(site, spliced, first, end):
  rise = np.asarray(spliced.loss, np.float64) - site.loss_clean
  return _sums(rise, site.keep_loss, first, end)


def _reconstruction(site, spliced, first, end) -> Estimate | None:
  return _ratio(*_errors(site, spliced, first, end))


def _delta_loss(site, spliced, first, end) -> Estimate | None:
  return _ratio(*_rises(site, spliced, first, end))


def _ratio(total, count) -> Estimate | None:
  return ratio(total, count) if count.any() else None


def _contrasts(site, spliced) -> dict[str, Any]:
  """Differences between spans of positions, paired by sequence."""
  pairs = {
    "reconstruction_peak_less_first": (_errors, _PEAK, _FIRST),
    "reconstruction_late_less_peak": (_errors, _LATE, _PEAK),
    "delta_loss_late_less_first": (_rises, _LATE, _FIRST),
  }
  found: dict[str, Any] = {}
  for name, (of, one, other) in pairs.items():
    a, b = of(site, spliced, *one), of(site, spliced, *other)
    there = a[1].any() and b[1].any()
    found[name] = paired_difference(*a, *b).to_dict() if there else None
  return found


def result(
  rows: Sequence[Mapping[str, Any]],
  records: Mapping[str, tuple[SiteRecord, SpliceRecord]],
) -> dict[str, Any]:
  """The study's result.

  Args:
    rows: a description of each SAE, with "name", "site" and "l0".
    records: of each, by name.

  Returns:
    {"study": "position", "format": 1, "saes": [...]}, see `by_position`.
  """
  return {
    "study": STUDY,
    "format": 1,
    "saes": [dict(row) | by_position(*records[row["name"]]) for row in rows],
  }


def findings(result: Mapping[str, Any]) -> list[Finding]:
  """What a result says about figures 3 and 15."""
  saes = result["saes"]
  of = lambda kind: [s for s in saes if s["site"].split(".")[0] == kind]
  return [
    _finding(
      "3",
      "Reconstruction loss is low at the first tokens and rises sharply.",
      saes,
      "reconstruction_peak_less_first",
      1,
      f"positions {_PEAK[0]}-{_PEAK[1] - 1} less {_FIRST[0]}-{_FIRST[1] - 1}",
    ),
    _finding(
      "3",
      "At MLP sites it peaks near token 10 and then falls slowly.",
      of("mlp"),
      "reconstruction_late_less_peak",
      -1,
      f"positions from {_LATE[0]} less {_PEAK[0]}-{_PEAK[1] - 1}",
    ),
    _finding(
      "3",
      "At residual and attention sites it goes on rising, to a plateau.",
      of("res") + of("att"),
      "reconstruction_late_less_peak",
      1,
      f"positions from {_LATE[0]} less {_PEAK[0]}-{_PEAK[1] - 1}",
    ),
    _finding(
      "15",
      "Delta loss is slightly lower at the first tokens.",
      saes,
      "delta_loss_late_less_first",
      1,
      f"positions from {_LATE[0]} less {_FIRST[0]}-{_FIRST[1] - 1}, nats",
    ),
  ]


def _finding(figure, claim, saes, contrast, sign, what) -> Finding:
  """Whether a contrast has the claimed sign for all SAEs."""
  found = [(s["name"], s["contrasts"][contrast]) for s in saes]
  found = [(n, c) for n, c in found if c and c["stderr"] is not None]
  if not found:
    return Finding(figure, claim, "No SAE to say.", UNCLEAR)
  z = [sign * c["mean"] / max(c["stderr"], 1e-300) for _, c in found]
  verdict = UNCLEAR
  if all(each > _SURE for each in z):
    verdict = AGREES
  elif any(each < -_SURE for each in z):
    verdict = DISAGREES
  words = "; ".join(
    f"{name}: {c['mean']:+.3g} ± {c['stderr']:.2g}" for name, c in found
  )
  return Finding(figure, claim, f"{what.capitalize()}: {words}.", verdict)
