"""What an explainer or a simulator gives instead of an answer: a failure.

A failure is counted by kind and lowers the coverage. It is never turned into
a number: a zero in its place would be a prediction that nobody made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gemmascope_jax.studies.interpretability.contexts import Contexts

PARSE, REFUSAL, TRANSPORT = "parse", "refusal", "transport"
KINDS = (PARSE, REFUSAL, TRANSPORT)


@dataclasses.dataclass(frozen=True)
class Failure:
  """No answer.

  Attributes:
    kind: "parse": an answer that can't be read; "refusal": it was declined;
      "transport": none arrived, which another run may mend.
    detail: the answer, or the error.
  """

  kind: str
  detail: str

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"kind {self.kind!r}: expected one of {KINDS}")


class Explainer(Protocol):
  """Says what a latent fires on."""

  def describe(self) -> dict[str, Any]:
    """JSON of everything that determines its answers."""

  def explain(self, shown: Sequence[Contexts]) -> list[Any | Failure]:
    """An explanation, JSON-ready, or a failure, for each latent.

    Args:
      shown: the contexts of each latent, strongest first.
    """


class Simulator(Protocol):
  """Predicts activations from an explanation alone."""

  def describe(self) -> dict[str, Any]:
    """JSON of everything that determines its answers."""

  def simulate(
    self, explanation: Any, tokens: np.ndarray, keep: np.ndarray
  ) -> list[np.ndarray | Failure]:
    """Predictions for each context, in any unit.

    It is not given the activations.

    Args:
      explanation: what an explainer made.
      tokens: int32 [C, T].
      keep: bool [C, T], positions that count; others may be anything.

    Returns:
      For each context float [T], or a failure.
    """
