"""SAEs of a base model in its instruction-tuned twin (paper 4.5, figures 8,
19-23).

The tuned model answers prompts; SAEs of the base and of the tuned model are
spliced into it, and looked at on what the user said and on what the model
answered apart. An activation belongs to the part of its own token, a loss to
the part of the token that is predicted. Base SAEs are also given activations
that are rescaled to the norm of the base model's (figure 23),

  x_hat = SAE(c x) / c,   c^2 = E||x_base||^2 / E||x_tuned||^2.

Letters: S sequences (rollouts), T tokens, D width of the site.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gemmascope_jax.studies.estimate import paired_difference
from gemmascope_jax.studies.findings import (
  AGREES,
  DISAGREES,
  SURE,
  UNCLEAR,
  Finding,
  verdict,
)
from gemmascope_jax.studies.records import (
  SiteRecord,
  SpliceRecord,
  masked_sum,
)
from gemmascope_jax.studies.replacements import Replacement

STUDY = "instruct"
PARTS = ("rollout", "prompt")
BASE, TUNED = "base", "tuned"
RESCALED = " (rescaled)"
_ALMOST = 0.1  # of the tuned SAE's delta loss: "almost the same"


class Rescaled(Replacement):
  """Another replacement, on activations of another scale.

  Attributes:
    inner: what is given `factor` times the activation.
    factor: float32 scalar.
  """

  inner: Replacement
  factor: jax.Array

  def reconstruct(self, x):
    """inner(factor x) / factor."""
    x_hat, active = self.inner.reconstruct(x * self.factor)
    return x_hat / self.factor, active


def part(record: SiteRecord, mask: np.ndarray, first: np.ndarray) -> SiteRecord:
  """A record in which only some tokens count, FVU's mean being theirs.

  Args:
    record: of all tokens.
    mask: bool [S, T], the part's tokens.
    first: float64 [S, D], sums of x - shift over those that count: see
      `site_means.sums`.
  """
  return dataclasses.replace(
    record,
    keep=record.keep & mask,
    keep_loss=record.keep_loss & mask[:, 1:],
    first=first,
    first_special=record.first_special[:0],
    second=record.second[:0],
  )


def result(
  rows: Sequence[Mapping[str, Any]],
  records: Mapping[str, Mapping[str, SiteRecord]],
  spliced: Mapping[str, Mapping[str, SpliceRecord]],
  rollouts: Mapping[str, Any],
  factors: Mapping[str, float],
) -> dict[str, Any]:
  """The study's result.

  Args:
    rows: a description of each SAE, with "name", "site", "trained_on" (base or
      tuned) and "rescaled".
    records: of each site, of each of `PARTS`.
    spliced: of each site, what each SAE does there, by name.
    rollouts: what made them.
    factors: c of each site.

  Returns:
    {"study": "instruct", "format": 1, "rollouts", "norms", "saes",
    "differences", "rescaling"}: a row an SAE with metrics of each part;
    differences between the SAEs of the base and the tuned model that were
    trained alike, and between rescaled and plain, paired by sequence.
  """
  saes = []
  for row in rows:
    one = spliced[row["site"]][row["name"]]
    parts = {
      name: _metrics(record, one)
      for name, record in records[row["site"]].items()
    }
    saes.append(dict(row) | {"parts": parts})
  return {
    "study": STUDY,
    "format": 1,
    "rollouts": dict(rollouts),
    "norms": [
      {"site": site, "base_over_tuned": float(factor)}
      for site, factor in factors.items()
    ],
    "saes": saes,
    "differences": [
      _difference(base, tuned, records, spliced)
      for base in rows
      for tuned in rows
      if _alike(base, tuned)
    ],
    "rescaling": [
      _difference(scaled, plain, records, spliced)
      for scaled in rows
      for plain in rows
      if scaled["name"] == plain["name"] + RESCALED
    ],
  }


def _metrics(record: SiteRecord, one: SpliceRecord) -> dict[str, Any]:
  found = {
    "clean_loss": record.clean(),
    "delta_loss": one.delta_loss(record),
    "fvu": one.fvu(record),
    "l0": one.l0(record),
  }
  return {key: value and value.to_dict() for key, value in found.items()}


def _alike(base, tuned) -> bool:
  """Whether two SAEs differ in the model that they were trained on alone."""
  same = ("site", "family", "width", "sparsity_coefficient", "k")
  return (
    (base["trained_on"], tuned["trained_on"]) == (BASE, TUNED)
    and not base["rescaled"]
    and all(base.get(key) == tuned.get(key) for key in same)
  )


def _difference(one, other, records, spliced) -> dict[str, Any]:
  """The first less the second, part by part."""
  a, b = (spliced[row["site"]][row["name"]] for row in (one, other))
  found = {}
  for name, record in records[one["site"]].items():
    counts = {
      "delta_loss": (
        a.rise(record),
        b.rise(record),
        record.loss_count,
      ),
      "fvu": (
        masked_sum(a.squared_error, record.keep),
        masked_sum(b.squared_error, record.keep),
        record.variance(),
      ),
      "l0": (
        masked_sum(a.active, record.keep),
        masked_sum(b.active, record.keep),
        record.count,
      ),
    }
    found[name] = {
      metric: paired_difference(top, per, less, per).to_dict()
      for metric, (top, less, per) in counts.items()
    }
  return {
    "site": one["site"],
    "of": one["name"],
    "less": other["name"],
    "parts": found,
  }


def findings(result: Mapping[str, Any]) -> list[Finding]:
  """What a result says about figures 8 and 19-23."""
  return [
    _same_loss(result),
    _fvu_gap(result),
    _prompts(result),
    _rescaling(result),
  ]


def _by_name(result) -> dict[str, Any]:
  return {row["name"]: row for row in result["saes"]}


def _signed(value: Mapping[str, Any]) -> str:
  error = value["stderr"]
  return f"{value['mean']:+.3g} ± {'?' if error is None else f'{error:.2g}'}"


def _sure(value: Mapping[str, Any]) -> float:
  """How many standard errors from zero."""
  if value["stderr"] is None:
    return 0.0
  return value["mean"] / max(value["stderr"], 1e-300)


def _same_loss(result) -> Finding:
  claim = (
    "On rollouts SAEs of the base model give almost the same delta loss as"
    " those of the tuned one."
  )
  rows, verdicts, words = _by_name(result), [], []
  for each in result["differences"]:
    gap = each["parts"]["rollout"]["delta_loss"]
    own = rows[each["less"]]["parts"]["rollout"]["delta_loss"]["mean"]
    if gap["stderr"] is None:
      continue
    room = _ALMOST * abs(own)
    if abs(gap["mean"]) + SURE * gap["stderr"] <= room:
      verdicts.append(AGREES)
    elif abs(gap["mean"]) - SURE * gap["stderr"] > room:
      verdicts.append(DISAGREES)
    else:
      verdicts.append(UNCLEAR)
    l0 = each["parts"]["rollout"]["l0"]
    words.append(f"{_signed(gap)} of {own:.3g} (L0 {_signed(l0)})")
  together = verdicts[0] if len(set(verdicts)) == 1 else UNCLEAR
  seen = "No pair of SAEs that were trained alike."
  if words:
    seen = (
      f"Base less tuned, trained alike, nats: {'; '.join(words)}. Almost: within"
      f" {_ALMOST:.0%}, two standard errors included."
    )
  return Finding("8", claim, seen, together)


def _fvu_gap(result) -> Finding:
  claim = "The gap in FVU is larger than the gap in delta loss."
  rows, signs, words = _by_name(result), [], []
  for each in result["differences"]:
    shares = []
    for metric in ("fvu", "delta_loss"):
      gap = each["parts"]["rollout"][metric]
      own = rows[each["less"]]["parts"]["rollout"][metric]["mean"]
      if gap["stderr"] is None or own <= 0:
        break
      shares.append((gap["mean"] / own, gap["stderr"] / own))
    if len(shares) < 2:
      continue
    (fvu, fvu_error), (loss, loss_error) = shares
    signs.append((fvu - loss) / max(math.hypot(fvu_error, loss_error), 1e-300))
    words.append(
      f"FVU {fvu:+.1%} ± {fvu_error:.1%}, delta loss {loss:+.1%} ±"
      f" {loss_error:.1%}"
    )
  seen = "No pair of SAEs that were trained alike."
  if words:
    seen = f"Base against tuned, on rollouts: {'; '.join(words)}."
  return Finding("8, 21", claim, seen, verdict(signs))


def _prompts(result) -> Finding:
  claim = "On what users say, an SAE of the base model can even reduce loss."
  found = [
    row["parts"]["prompt"]["delta_loss"]
    for row in result["saes"]
    if row["trained_on"] == BASE and not row["rescaled"]
  ]
  found = [each for each in found if each["stderr"] is not None]
  said = UNCLEAR
  if any(_sure(each) < -SURE for each in found):
    said = AGREES
  elif found and all(_sure(each) > SURE for each in found):
    said = DISAGREES
  words = "; ".join(map(_signed, found)) or "no SAE of the base model"
  return Finding("20", claim, f"Delta loss, nats: {words}.", said)


def _rescaling(result) -> Finding:
  claim = (
    "Rescaling activations to the base model's norm lowers L0, but not FVU as"
    " well: the frontier does not improve."
  )
  norms = "; ".join(
    f"{each['site']}: {each['base_over_tuned']:.4f}" for each in result["norms"]
  )
  gaps = [each["parts"]["rollout"] for each in result["rescaling"]]
  gaps = [each for each in gaps if each["l0"]["stderr"] is not None]
  said = UNCLEAR
  if gaps and all(
    _sure(each["l0"]) < -SURE and _sure(each["fvu"]) > -SURE for each in gaps
  ):
    said = AGREES
  elif gaps and (
    all(_sure(each["l0"]) > SURE for each in gaps)
    or all(
      _sure(each["l0"]) < SURE and _sure(each["fvu"]) < -SURE for each in gaps
    )
  ):
    said = DISAGREES
  words = "; ".join(
    f"L0 {_signed(each['l0'])}, FVU {_signed(each['fvu'])}" for each in gaps
  )
  seen = f"Base norm over tuned norm: {norms}."
  if words:
    seen += f" Rescaled less plain, on rollouts: {words}."
  return Finding("23", claim, seen, said)
