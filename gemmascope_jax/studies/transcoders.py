"""Transcoders against SAEs of the MLP's output (paper app. B, figure 11).

Both are spliced in where the MLP writes. SAEs have other L0s than transcoders,
so their delta loss and FVU are interpolated to a transcoder's L0, linearly in
log L0 between the two SAEs around it; the difference is paired by sequence, and
its standard error takes the interpolation's weights as given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmascope_jax.studies.estimate import Estimate, combination
from gemmascope_jax.studies.findings import UNCLEAR, Finding, verdict
from gemmascope_jax.studies.records import (
  SiteRecord,
  SpliceRecord,
  masked_sum,
)

STUDY = "transcoders"
SAE, TRANSCODER, SKIP = "sae", "transcoder", "skip transcoder"


def kind(row: Mapping[str, Any]) -> str:
  """What a description is of."""
  if row["reads"] == row["site"]:
    return SAE
  return SKIP if row["skip"] else TRANSCODER


def result(
  rows: Sequence[Mapping[str, Any]],
  records: Mapping[str, tuple[SiteRecord, Mapping[str, SpliceRecord]]],
) -> dict[str, Any]:
  """The study's result.

  Args:
    rows: a description of each SAE and transcoder, with "name", "site",
      "reads" and "skip"; of sites to which a transcoder writes.
    records: of each site, what was measured there by name.

  Returns:
    {"study": "transcoders", "format": 1, "saes", "comparisons"}: a row each
    with "kind", "l0", "delta_loss" and "fvu"; and for each pair of kinds at
    each L0 of the first that lies within the second's, the first less the
    second.

  Raises:
    ValueError: no transcoder is among them.
  """
  if not any(kind(row) != SAE for row in rows):
    raise ValueError(
      "study 'transcoders' compares transcoders with SAEs of the site that they"
      " write to, but no transcoder is given"
    )
  found = []
  for row in rows:
    record, spliced = records[row["site"]]
    one = spliced[row["name"]]
    found.append(
      dict(row)
      | {
        "kind": kind(row),
        "l0": one.l0(record).to_dict(),
        "delta_loss": one.delta_loss(record).to_dict(),
        "fvu": one.fvu(record).to_dict(),
      }
    )
  return {
    "study": STUDY,
    "format": 1,
    "saes": found,
    "comparisons": [
      each
      for site in dict.fromkeys(row["site"] for row in found)
      for one, other in ((TRANSCODER, SAE), (SKIP, SAE), (SKIP, TRANSCODER))
      for each in _comparisons(
        [row for row in found if row["site"] == site],
        one,
        other,
        *records[site],
      )
    ],
  }


def _comparisons(rows, one, other, record, spliced) -> list[dict[str, Any]]:
  """Of each row of a kind, less the other kind at its L0."""
  known = sorted(
    (row["l0"]["mean"], row["name"])
    for row in rows
    if row["kind"] == other and row["l0"]["mean"] > 0
  )
  found = []
  for row in rows:
    l0 = row["l0"]["mean"]
    around = weights(l0, [each for each, _ in known])
    if row["kind"] != one or around is None:
      continue
    names = [row["name"], *(known[place][1] for place, _ in around)]
    shares = np.array([1.0, *(-share for _, share in around)])
    records = [spliced[name] for name in names]
    found.append(
      {
        "site": row["site"],
        "of": row["name"],
        "kind": one,
        "less": other,
        "between": names[1:],
        "l0": l0,
      }
      | {
        metric: difference.to_dict()
        for metric, difference in _differences(record, records, shares).items()
      }
    )
  return found


def _differences(record, records, shares) -> dict[str, Estimate]:
  count, variance = record.loss_count, record.variance()
  return {
    "delta_loss": combination(
      shares,
      np.stack([each.rise(record) for each in records]),
      np.stack([count] * len(records)),
    ),
    "fvu": combination(
      shares,
      np.stack([masked_sum(r.squared_error, record.keep) for r in records]),
      np.stack([variance] * len(records)),
    ),
  }


def weights(
  l0: float, known: Sequence[float]
) -> list[tuple[int, float]] | None:
  """Places in `known`, ascending, and their shares at an L0; None outside."""
  if len(known) < 2 or not known[0] <= l0 <= known[-1]:
    return None
  after = min(int(np.searchsorted(known, l0, side="right")), len(known) - 1)
  low, high = known[after - 1], known[after]
  if low == high:
    return [(after - 1, 0.5), (after, 0.5)]
  share = math.log(l0 / low) / math.log(high / low)
  return [(after - 1, 1 - share), (after, share)]


def findings(result: Mapping[str, Any]) -> list[Finding]:
  """What a result says about figure 11, and about the skip connection."""
  return [
    _finding(
      result,
      "11",
      "At equal L0 transcoders have a larger delta loss than SAEs of the MLP's"
      " output.",
      TRANSCODER,
      SAE,
      sign=1,
    ),
    _finding(
      result,
      "beyond 11",
      "(Not in the paper) A skip connection lowers a transcoder's delta loss at"
      " equal L0.",
      SKIP,
      TRANSCODER,
      sign=-1,
    ),
  ]


def _finding(result, figure, claim, one, other, sign) -> Finding:
  found = [
    each
    for each in result["comparisons"]
    if (each["kind"], each["less"]) == (one, other)
    and each["delta_loss"]["stderr"] is not None
  ]
  if not found:
    seen = f"No {one} has an L0 within those of {other}s."
    return Finding(figure, claim, seen, UNCLEAR)
  z = [
    sign * c["delta_loss"]["mean"] / max(c["delta_loss"]["stderr"], 1e-300)
    for c in found
  ]
  words = "; ".join(
    f"L0 {c['l0']:.0f}: {c['delta_loss']['mean']:+.3g}"
    f" ± {c['delta_loss']['stderr']:.2g}"
    for c in found
  )
  seen = f"{one.capitalize()} less {other}, paired, nats: {words}."
  return Finding(figure, claim, seen, verdict(z))
