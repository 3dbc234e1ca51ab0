"""SAEs of one or more sites side by side (paper 4.1; figures 2, 13, 17, 18).

Every metric of each SAE, what ablations cost at its site, what other projects
would call its FVU, and differences between SAEs of a site, paired by sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmascope_jax.studies import compat
from gemmascope_jax.studies.estimate import paired_difference
from gemmascope_jax.studies.findings import (
  AGREES,
  DISAGREES,
  UNCLEAR,
  Finding,
)
from gemmascope_jax.studies.records import (
  SiteRecord,
  SpliceRecord,
  masked_sum,
)
from gemmascope_jax.studies.sparsity_fidelity import summarise

STUDY, FORMAT = "fidelity", 2
ZERO, MEAN = "zero ablation", "mean ablation"
_SURE = 2.0  # standard errors


def result(
  rows: Sequence[Mapping[str, Any]],
  records: Mapping[str, tuple[SiteRecord, Mapping[str, SpliceRecord]]],
) -> dict[str, Any]:
  """The study's result.

  Args:
    rows: a description of each SAE, with "name" and "site".
    records: of each site, what was measured there: the SAEs by name, and the
      ablations `ZERO` and `MEAN`.

  Returns:
    {"study": "fidelity", "format": 2, "sites", "saes", "differences"}.
  """
  sites, saes = [], []
  for name, (record, found) in records.items():
    ablations = {
      "zero": _ablation(record, found[ZERO]),
      "mean": _ablation(record, found[MEAN]),
    }
    sites.append(
      {"site": name, "clean_loss": record.clean().to_dict()} | ablations
    )
  for row in rows:
    record, found = records[row["site"]]
    spliced = found[row["name"]]
    metrics = summarise(record, spliced, found[ZERO])
    saes.append(
      dict(row)
      | {
        key: value and value.to_dict()
        for key, value in vars(metrics).items()
        if key not in ("loss_clean", "loss_zero", "loss_recovered")
      }
      | {
        "loss_recovered_zero": metrics.loss_recovered.to_dict(),
        "loss_recovered_mean": spliced.loss_recovered(
          record, found[MEAN]
        ).to_dict(),
        "compat": [c.to_dict() for c in compat.conventions(record, spliced)],
      }
    )
  return {
    "study": STUDY,
    "format": FORMAT,
    "sites": sites,
    "saes": saes,
    "differences": _differences(rows, records),
  }


def _ablation(record: SiteRecord, spliced: SpliceRecord) -> dict[str, Any]:
  return {
    "delta_loss": spliced.delta_loss(record).to_dict(),
    "fvu": spliced.fvu(record).to_dict(),
  }


def _differences(rows, records) -> list[dict[str, Any]]:
  """Of each pair of SAEs of a site: the second less the first."""
  found = []
  for one, other in itertools.combinations(rows, 2):
    if one["site"] != other["site"]:
      continue
    record, spliced = records[one["site"]]
    a, b = spliced[other["name"]], spliced[one["name"]]
    of = {
      "delta_loss": (lambda s, r: s.rise(r), record.loss_count),
      "fvu": (
        lambda s, r: masked_sum(s.squared_error, r.keep),
        record.variance(),
      ),
      "l0": (lambda s, r: masked_sum(s.active, r.keep), record.count),
    }
    found.append(
      {"site": one["site"], "of": other["name"], "less": one["name"]}
      | {
        metric: paired_difference(
          total(a, record), per, total(b, record), per
        ).to_dict()
        for metric, (total, per) in of.items()
      }
    )
  return found


def findings(result: Mapping[str, Any]) -> list[Finding]:
  """What a result says about figures 2 and 13."""
  return [
    _between_sites(
      result,
      "2",
      "At equal L0, residual SAEs cost clearly more loss than attention and MLP"
      " SAEs.",
      "delta_loss",
      lambda gap, error: (
        AGREES
        if gap > _SURE * error
        else DISAGREES
        if gap < -_SURE * error
        else UNCLEAR
      ),
    ),
    _monotone(result),
  ]


def at_l0(saes: Sequence[Mapping[str, Any]], metric: str, l0: float):
  """(value, standard error) of a metric at an L0, between neighbours in log L0.

  Args:
    saes: rows of one site, family and width.
    metric: such as "delta_loss".
    l0: where to read it off.

  Returns:
    None outside the SAEs' own L0s.
  """
  points = sorted(
    (s["l0"]["mean"], s[metric]["mean"], s[metric]["stderr"] or 0.0)
    for s in saes
    if s["l0"] and s["l0"]["mean"] > 0
  )
  for (x0, y0, e0), (x1, y1, e1) in itertools.pairwise(points):
    if x0 <= l0 <= x1:
      share = np.log(l0 / x0) / np.log(x1 / x0) if x1 > x0 else 0.0
      value = y0 + share * (y1 - y0)
      # Neighbours share their text, so their errors do not average out.
      return float(value), float((1 - share) * e0 + share * e1)
  return None


def _common_l0(*groups) -> float | None:
  """The geometric middle of the L0s that all groups of SAEs span."""
  ends = []
  for group in groups:
    l0s = [s["l0"]["mean"] for s in group if s["l0"] and s["l0"]["mean"] > 0]
    if len(l0s) < 2:
      return None
    ends.append((min(l0s), max(l0s)))
  low, high = max(e[0] for e in ends), min(e[1] for e in ends)
  return float(np.sqrt(low * high)) if low < high else None


def _kin(row: Mapping[str, Any]) -> tuple:
  """What SAEs of one curve share, whatever the site."""
  transcoder = row.get("reads", row["site"]) != row["site"]
  return row.get("family"), row.get("width"), row.get("skip"), transcoder


def _between_sites(result, figure, claim, metric, judge) -> Finding:
  """Residual SAEs against the others of the same layer, at a common L0."""
  groups: dict[tuple, list] = {}
  for row in result["saes"]:
    if not _kin(row)[-1]:
      groups.setdefault((row["site"], _kin(row)), []).append(row)
  verdicts, words = [], []
  for (site, kin), ours in groups.items():
    if not site.startswith("res."):
      continue
    layer = site.split(".")[1]
    for kind in ("att", "mlp"):
      theirs = groups.get((f"{kind}.{layer}", kin))
      l0 = _common_l0(ours, theirs) if theirs else None
      if l0 is None:
        continue
      (a, e), (b, f) = (at_l0(group, metric, l0) for group in (ours, theirs))
      verdicts.append(judge(a - b, float(np.hypot(e, f))))
      words.append(
        f"{site} less {kind}.{layer} at L0 {l0:.0f}: {a - b:+.3g} ±"
        f" {float(np.hypot(e, f)):.2g} ({a:.3g} and {b:.3g})"
      )
  if not verdicts:
    seen = "No residual site with SAEs of the same L0s at another site."
    return Finding(figure, claim, seen, UNCLEAR)
  verdict = UNCLEAR
  if all(v == AGREES for v in verdicts):
    verdict = AGREES
  elif DISAGREES in verdicts:
    verdict = DISAGREES
  return Finding(figure, claim, "; ".join(words) + ".", verdict)


def _monotone(result) -> Finding:
  """Does less sparsity always cost less loss, pair by pair?"""
  claim = "Delta loss falls as L0 rises (at one site, family and width)."
  rows = {(s["site"], s["name"]): s for s in result["saes"]}
  signs = []
  for pair in result["differences"]:
    place = pair["site"]
    if _kin(rows[place, pair["of"]]) != _kin(rows[place, pair["less"]]):
      continue
    l0, delta = pair["l0"], pair["delta_loss"]
    if delta["stderr"] and l0["stderr"] is not None and l0["mean"]:
      direction = 1 if l0["mean"] > 0 else -1
      signs.append(direction * delta["mean"] / delta["stderr"])
  if not signs:
    return Finding("2", claim, "No two SAEs to compare.", UNCLEAR)
  falls = sum(z < -_SURE for z in signs)
  rises = sum(z > _SURE for z in signs)
  verdict = DISAGREES if rises else AGREES if falls == len(signs) else UNCLEAR
  seen = (
    f"Of {len(signs)} pairs it falls in {falls} and rises in {rises} by more"
    f" than {_SURE:g} standard errors (paired)."
  )
  return Finding("2", claim, seen, verdict)
