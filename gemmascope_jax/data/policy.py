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

_COUNTED_AT_ONCE = 1 << 20  # tokens


class PolicyMismatchError(ValueError):
  """Two artefacts were made under different token policies."""


@dataclasses.dataclass(frozen=True)
class TokenPolicy:
  """Which token positions count.

  Attributes:
    excluded_ids: token ids whose positions are never trained on, never
      spliced and never counted (BOS, EOS, padding), ascending.
    pad_id: the padding id; a prediction *of* padding is never counted.
    excluded_sequences: runs of token ids that don't count either, at none of
      their positions, wherever one stands whole in a row: the user prefix of a
      chat, for one, the same in every document and of far larger norm than
      text (paper, 4.5). An id of it counts where it stands elsewhere.
  """

  excluded_ids: tuple[int, ...]
  pad_id: int
  excluded_sequences: tuple[tuple[int, ...], ...] = ()

  def __post_init__(self):
    if not all(self.excluded_sequences):
      raise ValueError(
        f"excluded_sequences {self.excluded_sequences}: one is empty; expected"
        " at least one token id in each"
      )

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
      excluded_sequences=tuple(
        tuple(int(i) for i in sequence)
        for sequence in value.get("excluded_sequences", ())
      ),
    )

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready form, stored in every artefact.

    Without excluded sequences their key is left out, so that artefacts keep
    their fingerprints from before there were any.
    """
    value = {"excluded_ids": list(self.excluded_ids), "pad_id": self.pad_id}
    if self.excluded_sequences:
      value["excluded_sequences"] = [list(s) for s in self.excluded_sequences]
    return value

  def keep(self, tokens):
    """Positions that train, splice and count.

    Args:
      tokens: int [S, T], numpy or JAX; whole rows, since an excluded sequence
        that is cut in two is not recognised.

    Returns:
      bool [S, T], of the same library as `tokens`.
    """
    kept = tokens == tokens  # all true, in the caller's array library
    for excluded in self.excluded_ids:
      kept = kept & (tokens != excluded)
    for sequence in self.excluded_sequences:
      if len(sequence) <= tokens.shape[1]:
        kept = kept & ~_covered(tokens, sequence)
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
    return self.keep(tokens)[:, :-1] & (tokens[:, 1:] != self.pad_id)

  def require_same(self, other: TokenPolicy, what: str, where: str) -> None:
    """Raises `PolicyMismatchError` unless `other` is this very policy."""
    if self != other:
      raise PolicyMismatchError(
        f"{what} uses the token policy {self.to_dict()}, but {where} was made"
        f" under {other.to_dict()}: use the same tokenizer and policy, or make"
        f" {where} again"
      )


def _covered(tokens, sequence: tuple[int, ...]):
  """bool [S, T]: positions that lie in an occurrence of `sequence`."""
  library = tokens.__array_namespace__()
  starts = tokens.shape[1] - len(sequence) + 1
  begins = tokens[:, :starts] == sequence[0]
  for offset, expected in enumerate(sequence[1:], 1):
    begins = begins & (tokens[:, offset : offset + starts] == expected)
  covered = tokens != tokens  # all false
  for offset in range(len(sequence)):
    widths = ((0, 0), (offset, len(sequence) - 1 - offset))
    covered = covered | library.pad(begins, widths)
  return covered


def count_kept(policy: TokenPolicy, windows: np.ndarray) -> np.ndarray:
  """Kept positions in each window.

  Args:
    policy: which positions those are.
    windows: int [S, T], of numpy; may be a memory map far larger than memory,
      since about a million tokens are looked at at a time.

  Returns:
    int64 [S].
  """
  rows = max(1, _COUNTED_AT_ONCE // max(1, windows.shape[1]))
  counts = np.empty(len(windows), np.int64)
  for start in range(0, len(windows), rows):
    part = np.asarray(windows[start : start + rows])
    counts[start : start + rows] = policy.keep(part).sum(axis=1)
  return counts
