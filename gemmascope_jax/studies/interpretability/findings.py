"""The paper's findings on interpretability, judged by a result (4.4).

"No discernible difference" is only seen by a study that would have discerned
one: if an interval is so wide that a difference of `NOTABLE` could hide in it,
there is too little data. Intervals hold for all pairs of families together
(Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gemmascope_jax.studies.findings import (
  AGREES,
  DISAGREES,
  UNCLEAR,
  Finding,
)
from gemmascope_jax.studies.interpretability import summary

NOTABLE = 0.1  # of a correlation, or of a share of ratings
_ERROR = 0.05


def findings(result: dict[str, Any]) -> list[Finding]:
  """Judges Figure 7's findings, and Figure 6's if there are ratings.

  Args:
    result: as `study.run` returns it, with "ratings" (`ratings.table`) or
      without.
  """
  groups = result["families"]
  trained = [g for g in groups if g["family"] != summary.UNTRAINED]
  found = [
    _no_difference(
      "7",
      "SAE families are equally interpretable: language-model simulations"
      " correlate equally well with the true activations of JumpReLU, TopK and"
      " Gated SAEs' latents",
      trained,
      "score",
    ),
    _above_untrained(groups),
  ]
  ratings = result.get("ratings")
  if ratings is not None:
    found.append(
      _no_difference(
        "6",
        "SAE families are equally interpretable: people rate equal shares of"
        " JumpReLU, TopK and Gated SAEs' latents as interpretable",
        [g for g in ratings["families"] if g["family"] != summary.UNTRAINED],
        "yes",
      )
    )
  return found


def _no_difference(
  figure: str, claim: str, groups: Sequence[dict[str, Any]], key: str
) -> Finding:
  pairs = summary.differences(groups, key)
  seen = "; ".join(_mean(group, key) for group in groups) or "nothing"
  usable = [p for p in pairs if p["difference"]["stderr"] is not None]
  if not usable or len(usable) < len(pairs):
    return Finding(figure, claim, seen, UNCLEAR)
  z = _quantile(len(pairs))
  parts, verdict = [], AGREES
  for pair in pairs:
    value, stderr = pair["difference"]["mean"], pair["difference"]["stderr"]
    parts.append(f"{pair['a']} - {pair['b']}: {_number(pair['difference'])}")
    if abs(value) > z * stderr:
      verdict = DISAGREES
    elif abs(value) + z * stderr > NOTABLE and verdict == AGREES:
      verdict = UNCLEAR
  return Finding(figure, claim, f"{seen}. {'; '.join(parts)}", verdict)


def _above_untrained(groups: Sequence[dict[str, Any]]) -> Finding:
  claim = (
    "latents of trained SAEs are simulated better than those of a"
    " random-initialised SAE"
  )
  base = next(
    (g for g in groups if g["family"] == summary.UNTRAINED and g["score"]), None
  )
  trained = [
    g for g in groups if g["family"] != summary.UNTRAINED and g["score"]
  ]
  seen = "; ".join(_mean(group, "score") for group in groups)
  if base is None or not trained:
    return Finding("7", claim, seen or "nothing", UNCLEAR)
  gaps = [summary.unpaired(g["score"], base["score"]) for g in trained]
  parts = [
    f"{g['family']} - untrained: {_number(gap.to_dict())}"
    for g, gap in zip(trained, gaps, strict=True)
  ]
  z = _quantile(len(gaps))
  if any(gap.stderr is None for gap in gaps):
    verdict = UNCLEAR
  elif all(gap.mean > z * gap.stderr for gap in gaps):
    verdict = AGREES
  # Some family is not above it, by as much as would have to be seen.
  elif any(gap.mean + z * gap.stderr < NOTABLE for gap in gaps):
    verdict = DISAGREES
  else:
    verdict = UNCLEAR
  return Finding("7", claim, f"{seen}. {'; '.join(parts)}", verdict)


def _quantile(comparisons: int) -> float:
  from scipy import stats

  return float(stats.norm.ppf(1 - _ERROR / (2 * comparisons)))


def _mean(group: dict[str, Any], key: str) -> str:
  value = group[key]
  if value is None:
    return f"{group['family']}: none scored"
  return f"{group['family']} {_number(value)} (n = {value['n']})"


def _number(value: dict[str, Any]) -> str:
  if value["stderr"] is None or not math.isfinite(value["stderr"]):
    return f"{value['mean']:.3f} ± ?"
  return f"{value['mean']:.3f} ± {value['stderr']:.3f}"
