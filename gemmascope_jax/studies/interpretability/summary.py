"""From latents' scores to SAEs, families of SAEs and their differences.

The sampling unit is the latent: means have standard errors over latents, and
differences between SAEs, whose latents are different ones, are unpaired; a
latent's score and its baselines' are paired.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gemmascope_jax.studies.estimate import Estimate, ratio
from gemmascope_jax.studies.interpretability.scoring import SCORED

WELL = 0.9  # "well simulated" (JumpReLU paper): a correlation above this
UNTRAINED = "untrained"


def of_latents(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The summary of one SAE's or one family's latents.

  Args:
    rows: as `scoring` makes them.

  Returns:
    JSON-ready. "score" and the others are means over latents that have one,
    None if none has; "above_other_explanation" is the mean paired difference
    to another latent's explanation; "coverage" says how many latents and
    contexts the scores stand for, and why others are missing.
  """
  found = [row for row in rows if row["status"] == SCORED]
  values = np.array([row["score"]["mean"] for row in found])
  other = [_other(row) for row in found]
  return {
    "score": mean(values),
    "median": float(np.median(values)) if len(values) else None,
    "well_simulated": mean(values > WELL),
    "constant": sum(row["constant"] for row in found),
    "detection": mean(_values(found, "detection")),
    "fuzzing": mean(_values(found, "fuzzing")),
    "shuffled_activations": mean(_values(found, "shuffled_activations")),
    "shuffled_explanation": mean([x for x in other if x is not None]),
    "above_other_explanation": mean(
      [
        row["score"]["mean"] - x
        for row, x in zip(found, other, strict=True)
        if x is not None
      ]
    ),
    "coverage": {
      "latents": len(rows),
      "scored": len(found),
      "contexts": sum(row["contexts"] for row in rows),
      "simulated": sum(row["simulated"] for row in rows),
      "unscored": _counted(
        row["status"] for row in rows if row["status"] != SCORED
      ),
      "failed_contexts": _counted(
        kind for row in rows for kind in _spelled_out(row["failures"])
      ),
    },
  }


def mean(values: Iterable[float]) -> dict[str, Any] | None:
  """Mean with a standard error over latents; None of nothing."""
  values = np.asarray(list(values), np.float64)
  if not len(values):
    return None
  return ratio(values, np.ones(len(values))).to_dict()


def families(saes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Latents of all SAEs of a family together; untrained ones are one family.

  Args:
    saes: the result's SAEs: "family", "kind" and "latents".
  """
  groups: dict[str, list[dict[str, Any]]] = {}
  for sae in saes:
    groups.setdefault(group_of(sae), []).append(sae)
  return [
    {
      "family": name,
      "saes": len(members),
      **of_latents([row for sae in members for row in sae["latents"]]),
    }
    for name, members in groups.items()
  ]


def group_of(sae: dict[str, Any]) -> str:
  """The family of one of the result's SAEs, or "untrained"."""
  return UNTRAINED if sae["kind"] == UNTRAINED else sae["family"]


def differences(
  groups: Sequence[dict[str, Any]], key: str = "score"
) -> list[dict[str, Any]]:
  """Every pair of families: the first's mean less the second's.

  Args:
    groups: dicts with "family" and an estimate or None under `key`.
    key: which estimate.
  """
  known = [group for group in groups if group[key] is not None]
  return [
    {
      "a": a["family"],
      "b": b["family"],
      "difference": unpaired(a[key], b[key]).to_dict(),
    }
    for a, b in itertools.combinations(known, 2)
  ]


def unpaired(a: dict[str, Any], b: dict[str, Any]) -> Estimate:
  """a - b of independent estimates, as dicts."""
  stderr = None
  if a["stderr"] is not None and b["stderr"] is not None:
    stderr = math.hypot(a["stderr"], b["stderr"])
  return Estimate(a["mean"] - b["mean"], stderr, a["n"] + b["n"])


def _values(rows, name: str) -> list[float]:
  return [row[name]["mean"] for row in rows if row[name] is not None]


def _other(row: dict[str, Any]) -> float | None:
  other = row["shuffled_explanation"]
  if other is None or other["score"] is None:
    return None
  return other["score"]["mean"]


def _counted(kinds: Iterable[str]) -> dict[str, int]:
  return dict(sorted(collections.Counter(kinds).items()))


def _spelled_out(failures: dict[str, int]) -> Iterable[str]:
  for kind, count in failures.items():
    yield from itertools.repeat(kind, count)
