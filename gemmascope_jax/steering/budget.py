"""What a way to steer achieves when it may cost so much fluency.

A method has a strength to choose, and the best of several looks better than it
is. So each half of the prompts is scored at the strength that did best on the
other half, among those whose cost there stayed within the budget.

Letters: Q prompts, S held-out sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemmascope_jax.studies.estimate import (
  Estimate,
  paired_difference,
  ratio,
)

COSTS = ("text_loss", "held_out_loss")

# Of each metric float64 [2, Q] or [2, S]: sums, and their weights.
Measured = Mapping[str, np.ndarray]

_ALL = slice(None)


def value(one: Measured, name: str, some: slice = _ALL) -> Estimate | None:
  """A metric, of some of the prompts; None where nothing counts."""
  sums, weights = one[name][:, some]
  return ratio(sums, weights) if weights.any() else None


def change(
  one: Measured, other: Measured, name: str, some: slice = _ALL
) -> Estimate | None:
  """A metric less what it is in `other`, paired; None where nothing counts."""
  a, b = one[name][:, some]
  c, d = other[name][:, some]
  return paired_difference(a, b, c, d) if b.any() and d.any() else None


def at_budget(
  method: str,
  found: Mapping[tuple[str, float], Measured],
  plain: Measured,
  effect: str,
  cost: str,
  most: float,
  first: str,
) -> dict[str, Any]:
  """A method's effect at the strengths that the other half of prompts chose.

  Args:
    method: which.
    found: what was measured, by method and strength.
    plain: without edits: what is left where no strength within the budget does
      better.
    effect: name of the metric to be large.
    cost: name of the one whose rise over `plain` is limited,
    most: to this.
    first: the method that others are compared with.

  Returns:
    JSON-ready: "method", "cost", "budget", "strengths" (of even prompts and of
    odd ones; 0: none), and estimates over prompts: "effect", "gain" over the
    model without edits, and "lead" over `first`, None for itself.
  """
  own, strengths = _scored(method, found, plain, effect, cost, most)
  lead = None
  if method != first:
    rival, _ = _scored(first, found, plain, effect, cost, most)
    lead = change(own, rival, effect)
  estimates = {
    "effect": value(own, effect),
    "gain": change(own, plain, effect),
    "lead": lead,
  }
  return {
    "method": method,
    "cost": cost,
    "budget": most,
    "strengths": strengths,
  } | {name: each and each.to_dict() for name, each in estimates.items()}


def _scored(
  method, found, plain, effect, cost, most
) -> tuple[Measured, list[float]]:
  """Each half of the prompts at the strength that the other half chose."""
  sums = np.array(plain[effect])
  chosen = []
  for half in range(2):
    mine, others = slice(half, None, 2), slice(1 - half, None, 2)
    start = value(plain, effect, others)
    best, strength = (-np.inf if start is None else start.mean), 0.0
    for (name, tried), one in found.items():
      if name != method:
        continue
      # A cost is a sum a prompt, or a held-out sequence; half of either.
      spent = change(one, plain, cost, others)
      gained = value(one, effect, others)
      if spent is None or gained is None or spent.mean > most:
        continue
      if gained.mean > best:
        best, strength = gained.mean, tried
        sums[:, mine] = one[effect][:, mine]
    chosen.append(strength)
  return {effect: sums}, chosen
