"""How well a model predicts its own turns of conversations.

The head costs more than the blocks where the vocabulary is large, so losses are
computed at the positions that count and nowhere else.

Letters: S sequences, T tokens, X positions that count, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gemmascope_jax import gemma
from gemmascope_jax.data.tokens.conversations import Conversations
from gemmascope_jax.studies.estimate import Estimate, ratio

Array = jax.Array

_ROUND = 64  # X is a multiple of it, so that few shapes are compiled


class Batch(flax.struct.PyTreeNode):
  """Conversations, and where their losses count.

  Attributes:
    tokens: int32 [S, T].
    mask: bool [S, T], True for real tokens.
    rows: int32 [X], the sequence of each position that counts.
    columns: int32 [X], the position whose next token counts.
    weights: float32 [X], 1, or 0 where there are fewer than X.
  """

  tokens: Array
  mask: Array
  rows: Array
  columns: Array
  weights: Array


@dataclasses.dataclass(frozen=True)
class Scores:
  """Losses of a model's turns, for each conversation.

  Attributes:
    total: float64 [S], nats, summed over the tokens that count.
    count: float64 [S], how many those are.
  """

  total: np.ndarray
  count: np.ndarray

  def loss(self) -> Estimate:
    """Nats a token; its error over conversations."""
    return ratio(self.total, self.count)

  def minus(self, other: Scores) -> Estimate:
    """How much larger the loss is than another's, paired by conversation."""
    return ratio(self.total - other.total, self.count)


def largest(conversations: Conversations, size: int) -> int:
  """X that is enough for any `size` of the conversations together."""
  counts = np.sort(conversations.counted[:, 1:].sum(axis=1))[-size:]
  return -(-int(counts.sum()) // _ROUND) * _ROUND


def batch(conversations: Conversations, chosen, positions: int) -> Batch:
  """Some of the conversations.

  Args:
    conversations: all of them.
    chosen: int [S], which; -1 is a row of padding.
    positions: X, see `largest`.
  """
  chosen = np.asarray(chosen)
  real = chosen[:, None] >= 0
  tokens = np.where(real, conversations.tokens[chosen], conversations.pad_id)
  counted = real & conversations.counted[chosen]
  rows, columns = np.nonzero(counted[:, 1:])
  missing = (0, positions - len(rows))
  return Batch(
    tokens=tokens,
    mask=tokens != conversations.pad_id,
    rows=np.pad(rows, missing).astype(np.int32),
    columns=np.pad(columns, missing).astype(np.int32),
    weights=np.pad(np.ones(len(rows), np.float32), missing),
  )


def losses(config: gemma.GemmaConfig, params: Any, given: Batch) -> Array:
  """Cross-entropy of each token that counts: float32 [X], nats."""
  out = gemma.forward(
    config, params, given.tokens, mask=given.mask, logits=False
  )
  residual = out.residual[given.rows, given.columns]  # [X, D]
  targets = given.tokens[given.rows, given.columns + 1]
  found = gemma.token_losses(config, params, residual[None], targets[None])
  return found[0]


@functools.partial(jax.jit, static_argnums=0)
def _totals(config, params, given: Batch) -> Array:
  """float32 [S]: summed losses of each sequence."""
  weighted = losses(config, params, given) * given.weights
  zeros = jnp.zeros(len(given.tokens), jnp.float32)
  return zeros.at[given.rows].add(weighted)


def score(
  lm: gemma.Gemma,
  conversations: Conversations,
  *,
  size: int = 8,
  what: str = "held-out loss",
  progress: bool = True,
) -> Scores:
  """The losses of the model's turns.

  Args:
    lm: with all its layers.
    conversations: see `conversations.windows`.
    size: conversations a forward pass.
    what: shown beside the progress bar.
    progress: show it.

  Raises:
    ValueError: size below 1.
  """
  if size < 1:
    raise ValueError(f"size is {size}; expected at least 1 conversation a pass")
  count = len(conversations.tokens)
  positions = largest(conversations, size)
  totals = []
  starts = range(0, count, size)
  for start in tqdm.tqdm(starts, desc=what, disable=not progress):
    chosen = np.arange(start, start + size)
    chosen[chosen >= count] = -1
    given = batch(conversations, chosen, positions)
    totals.append(np.asarray(_totals(lm.config, lm.params, given), np.float64))
  return Scores(
    total=np.concatenate(totals)[:count],
    count=conversations.counted[:, 1:].sum(axis=1).astype(np.float64),
  )
