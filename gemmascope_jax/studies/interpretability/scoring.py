"""The scores of one latent, with the baselines that they are judged against.

Letters: C contexts, n of them simulated.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmascope_jax.studies.estimate import Estimate
from gemmascope_jax.studies.interpretability import scores
from gemmascope_jax.studies.interpretability.contexts import Sample
from gemmascope_jax.studies.interpretability.outcomes import Failure

SCORED, UNDEFINED = "scored", "undefined"


def unexplained(sample: Sample, failure: Failure) -> dict[str, Any]:
  """The row of a latent that got no explanation."""
  return _row(sample, None, failure.kind) | {"detail": failure.detail}


def scored(
  sample: Sample,
  explanation: Any,
  simulated: Sequence[np.ndarray | Failure],
  seed: int,
) -> dict[str, Any]:
  """The row of a latent that was explained.

  Args:
    sample: the latent.
    explanation: JSON-ready.
    simulated: for each held-out context predictions at its counted tokens, or
      a failure.
    seed: of the shuffled activations.

  Returns:
    JSON-ready: "status" is "scored"; the kind of failure that all its contexts
    share; or "undefined" where the simulated contexts leave nothing to
    correlate with. Only "scored" rows have a "score".
  """
  true, predicted = _pairs(sample, simulated)
  failures = collections.Counter(
    answer.kind for answer in simulated if isinstance(answer, Failure)
  )
  row = _row(sample, explanation, UNDEFINED)
  row |= {"simulated": len(true), "failures": dict(sorted(failures.items()))}
  if not true:
    return row | {"status": failures.most_common(1)[0][0]}
  score = scores.simulation(true, predicted)
  if score is None:
    return row
  random = np.random.default_rng([seed, sample.latent])
  shuffled = scores.simulation(_shuffled(true, random), predicted)
  return row | {
    "status": SCORED,
    "score": score.to_dict(),
    "constant": scores.is_constant(predicted),
    "detection": _dict(scores.detection(true, predicted)),
    "fuzzing": _dict(scores.fuzzing(true, predicted)),
    "shuffled_activations": _dict(shuffled),
  }


def with_other_explanation(
  sample: Sample, other: int, simulated: Sequence[np.ndarray | Failure]
) -> dict[str, Any]:
  """How well another latent's explanation predicts this one.

  Args:
    sample: the latent.
    other: number of the latent whose explanation it is.
    simulated: as in `scored`.
  """
  true, predicted = _pairs(sample, simulated)
  return {
    "of": other,
    "simulated": len(true),
    "score": _dict(scores.simulation(true, predicted)) if true else None,
  }


def _row(sample: Sample, explanation: Any, status: str) -> dict[str, Any]:
  return {
    "latent": sample.latent,
    "frequency": sample.frequency,
    "explanation": explanation,
    "status": status,
    "contexts": len(sample.held_out),
    "simulated": 0,
    "failures": {},
    "score": None,
    "constant": False,
    "detection": None,
    "fuzzing": None,
    "shuffled_activations": None,
    "shuffled_explanation": None,
  }


def _pairs(sample: Sample, simulated) -> tuple[list, list]:
  """True and predicted activations of the contexts that were simulated."""
  held_out = sample.held_out
  pairs = [
    (activations[keep], answer)
    for activations, keep, answer in zip(
      held_out.activations, held_out.keep, simulated, strict=True
    )
    if not isinstance(answer, Failure)
  ]
  return [true for true, _ in pairs], [answer for _, answer in pairs]


def _shuffled(true: list[np.ndarray], random: np.random.Generator) -> list:
  """The same activations at other tokens, anywhere in the contexts."""
  cuts = np.cumsum([len(x) for x in true])[:-1]
  return np.split(random.permutation(np.concatenate(true)), cuts)


def _dict(value: Estimate | None) -> dict[str, Any] | None:
  return None if value is None else value.to_dict()
