"""A baseline without a language model: which tokens does the latent fire on?

The explanation is a list of tokens with their mean activation in the contexts
shown, the simulation that mean at every such token and 0 elsewhere. What a
language model's explanation is worth shows in how far it gets above this.

Letters: C contexts, T tokens in a context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmascope_jax.studies.interpretability.contexts import Contexts
from gemmascope_jax.studies.interpretability.outcomes import Failure


class TokenStatistics:
  """Explainer and simulator in one; see `outcomes` for both protocols.

  Args:
    most: tokens in an explanation.
    tokenizer: gives each token's text, for readers; None: left out.
  """

  def __init__(self, most: int = 50, tokenizer: Any = None):
    if most < 1:
      raise ValueError(f"most {most}: expected at least one token")
    self._most, self._tokenizer = most, tokenizer

  def describe(self) -> dict[str, Any]:
    """See `outcomes.Explainer`."""
    return {"kind": "token statistics", "most": self._most}

  def explain(self, shown: Sequence[Contexts]) -> list[Any | Failure]:
    """{"tokens": [[id, mean activation], ...], "pieces": [...]} a latent."""
    return [self._explain(contexts) for contexts in shown]

  def _explain(self, contexts: Contexts) -> dict[str, Any]:
    ids, place = np.unique(contexts.tokens[contexts.keep], return_inverse=True)
    values = contexts.activations[contexts.keep].astype(np.float64)
    means = np.bincount(place, values, len(ids)) / np.bincount(
      place, minlength=len(ids)
    )
    order = np.argsort(-means, kind="stable")[: self._most]
    order = order[means[order] > 0]
    found = {"tokens": [[int(ids[i]), float(means[i])] for i in order]}
    if self._tokenizer is not None:
      found["pieces"] = [
        self._tokenizer.pieces([int(ids[i])])[0] for i in order
      ]
    return found

  def simulate(
    self, explanation: Any, tokens: np.ndarray, keep: np.ndarray
  ) -> list[np.ndarray | Failure]:
    """See `outcomes.Simulator`."""
    try:
      means = {int(id_): float(mean) for id_, mean in explanation["tokens"]}
    except (TypeError, KeyError, ValueError):
      raise ValueError(
        f"explanation {explanation!r}: the token-statistics simulator reads"
        ' only its own explainer\'s, {"tokens": [[id, mean], ...]}'
      ) from None
    return [
      np.array([means.get(int(id_), 0.0) for id_ in row]) for row in tokens
    ]
