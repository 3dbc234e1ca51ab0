"""The one token policy: which positions train, are spliced and are counted.

Gemma Scope never collects activations at BOS, EOS or padding (paper, 3.1) and
masks those positions when it aggregates metrics (4.1). Peers scatter that rule
over harvesting, splicing and averaging, and disagree with themselves; here one
object says it, every artefact stores it, and a consumer refuses another's.

Letters: S sequences, T tokens in a sequence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


class PolicyMismatchError(ValueError):
  """Two artefacts were made under different token policies."""


@dataclasses.dataclass(frozen=True)
class TokenPolicy:
  """Which token positions count.

  Attributes:
    excluded_ids: token ids whose positions are never trained on, never
      spliced and never counted (BOS, EOS, padding), ascending.
    pad_id: the padding id; a prediction *of* padding is never counted.
  """

  excluded_ids: tuple[int, ...]
  pad_id: int

  @classmethod
  def of(cls, tokenizer: Any) -> TokenPolicy:
    """The paper's policy for a tokenizer with `bos_id`, `eos_id`, `pad_id`."""
    ids = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return cls(excluded_ids=tuple(sorted(ids)), pad_id=tokenizer.pad_id)

  @classmethod
  def from_dict(cls, value: dict[str, Any]) -> TokenPolicy:
    """The inverse of `to_dict`."""
    return cls(
      excluded_ids=tuple(int(i) for i in value["excluded_ids"]),
      pad_id=int(value["pad_id"]),
    )

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready form, stored in every artefact."""
    return {"excluded_ids": list(self.excluded_ids), "pad_id": self.pad_id}

  def keep(self, tokens):
    """Positions that train, splice and count.

    Args:
      tokens: int [S, T], numpy or JAX.

    Returns:
      bool [S, T], of the same library as `tokens`.
    """
    kept = tokens == tokens  # all true, in the caller's array library
    for excluded in self.excluded_ids:
      kept = kept & (tokens != excluded)
    return kept

  def keep_loss(self, tokens):
    """Positions whose next-token loss counts.

    Position t predicts token t + 1. It counts if position t is kept and the
    token to predict is not padding; the last position predicts nothing.

    Args:
      tokens: int [S, T], numpy or JAX.

    Returns:
      bool [S, T - 1]: entry t is about predicting `tokens[:, t + 1]`.
    """
    return self.keep(tokens[:, :-1]) & (tokens[:, 1:] != self.pad_id)

  def require_same(self, other: TokenPolicy, what: str, where: str) -> None:
    """Raises `PolicyMismatchError` unless `other` is this very policy."""
    if self != other:
      raise PolicyMismatchError(
        f"{what} uses the token policy {self.to_dict()}, but {where} was made"
        f" under {other.to_dict()}: use the same tokenizer and policy, or make"
        f" {where} again"
      )


def count_kept(policy: TokenPolicy, windows: np.ndarray) -> np.ndarray:
  """Kept positions in each window: int64 [S] for tokens int [S, T]."""
  return np.asarray(policy.keep(windows)).sum(axis=1, dtype=np.int64)
