"""SAEs on the subsets of a mixed corpus (paper 4.6, figure 9).

The same number of sequences of each subset; every metric is of that subset
alone, FVU by its own variance, and standard errors are over its sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemmascope_jax.studies.findings import UNCLEAR, Finding, verdict
from gemmascope_jax.studies.records import SiteRecord, SpliceRecord

STUDY = "subsets"
_BEST, _WORST = "dm_mathematics", "europarl"  # the paper's


def result(
  rows: Sequence[Mapping[str, Any]],
  records: Mapping[str, Mapping[str, tuple[SiteRecord, SpliceRecord]]],
  about: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """The study's result.

  Args:
    rows: a description of each SAE, with "name" and "site".
    records: of each subset that has text, of each SAE by name.
    about: of each subset, those without text too, what its text is: see
      `SubsetWindows.to_dict`.

  Returns:
    {"study": "subsets", "format": 1, "subsets", "saes"}: a row an SAE, with
    "clean_loss", "delta_loss", "fvu" and "l0" of each subset.
  """
  return {
    "study": STUDY,
    "format": 1,
    "subsets": [{"name": name} | dict(each) for name, each in about.items()],
    "saes": [
      dict(row)
      | {
        "subsets": {
          name: _metrics(*found[row["name"]]) for name, found in records.items()
        }
      }
      for row in rows
    ],
  }


def _metrics(record: SiteRecord, spliced: SpliceRecord) -> dict[str, Any]:
  found = {
    "clean_loss": record.clean(),
    "delta_loss": spliced.delta_loss(record),
    "fvu": spliced.fvu(record),
    "l0": spliced.l0(record),
  }
  return {key: value and value.to_dict() for key, value in found.items()}


def findings(result: Mapping[str, Any]) -> list[Finding]:
  """What a result says about figure 9."""
  return [
    _extreme(result, _BEST, "Delta loss is lowest on DM Mathematics.", sign=-1),
    _extreme(result, _WORST, "Delta loss is highest on Europarl.", sign=1),
  ]


def _extreme(result, subset: str, claim: str, sign: int) -> Finding:
  """Whether a subset is beyond every other one, for every SAE.

  Subsets are different texts, so their errors are independent.
  """
  found = {
    row["name"]: {
      name: metrics["delta_loss"]
      for name, metrics in row["subsets"].items()
      if metrics["delta_loss"]["stderr"] is not None
    }
    for row in result["saes"]
  }
  known = {n: of for n, of in found.items() if subset in of and len(of) > 1}
  if not known:
    return Finding("9", claim, f"No text for {subset}.", UNCLEAR)
  words, signs = [], []
  for name, of in known.items():
    own = of.pop(subset)
    rival = max(of, key=lambda n: sign * of[n]["mean"])
    gap = sign * (own["mean"] - of[rival]["mean"])
    error = math.hypot(own["stderr"], of[rival]["stderr"])
    signs.append(gap / max(error, 1e-300))
    words.append(
      f"{name}: {own['mean']:.3g} ± {own['stderr']:.2g}, next {rival}"
      f" {of[rival]['mean']:.3g} ± {of[rival]['stderr']:.2g}"
      if gap > 0
      else f"{name}: {own['mean']:.3g} ± {own['stderr']:.2g}, but {rival}"
      f" {of[rival]['mean']:.3g} ± {of[rival]['stderr']:.2g}"
    )
  stand_in = next(
    (s.get("stand_in") for s in result["subsets"] if s["name"] == subset), None
  )
  note = f" Text here: {stand_in}." if stand_in else ""
  return Finding(
    "9", claim, "; ".join(words) + f", nats.{note}", verdict(signs)
  )
