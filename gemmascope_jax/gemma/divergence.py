"""How far edited models' predictions are from the model's own.

Loss and Kullback-Leibler divergence of several edited residual streams at once,
the vocabulary a chunk at a time, as in `loss`: the model's own logits are made
once for all of them.

Letters: R edited streams, S sequences, T tokens, X = S * T, D width, V
vocabulary, P parts of the vocabulary, C rows of each part in a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gemmascope_jax.gemma import vocabulary
from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.layers import Precision, rms_norm
from gemmascope_jax.gemma.model import PRECISION

Array = jax.Array


class Divergence(NamedTuple):
  """Of each edited stream, at each position.

  Attributes:
    losses: float32 [R, S, T], cross-entropy of the targets, nats.
    kl: float32 [R, S, T], KL(own || edited) of the next token, nats; off by
      rounding of about 1e-6 times the logits' size, to either side.
  """

  losses: Array
  kl: Array


def divergence(
  config: GemmaConfig,
  params: Mapping[str, Any],
  own: Array,
  edited: Array,
  targets: Array,
  *,
  chunk: int = vocabulary.CHUNK,
  precision: Precision = PRECISION,
) -> Divergence:
  """Losses of edited streams, and their divergence from the model's own.

  With l the logits of the model and l' those of an edited stream,

    KL = sum_v p_v (l_v - l'_v) - log Z + log Z',   p = softmax(l)

  of which the sum runs over the chunks as log Z does.

  Args:
    config: the architecture.
    params: needs `embedder` and `final_norm`.
    own: [S, T, D], the model's stream after the last layer, before the final
      norm.
    edited: [R, S, T, D], the same after edits.
    targets: int [S, T], the token that comes next at each position.
    chunk: words in a chunk; about chunk x (R + 1) x S x T logits exist at any
      time.
    precision: of the matrix products.

  Raises:
    ValueError: shapes that do not fit, or chunk is not positive.
  """
  vocabulary.check_targets(config, own, targets, chunk)
  if edited.ndim != 4 or edited.shape[1:] != own.shape:
    raise ValueError(
      f"edited streams of shape {edited.shape}: expected [R, S, T, D] with"
      f" [S, T, D] = {own.shape}"
    )
  table = params["embedder"]["embedding"]
  scale, eps = params["final_norm"]["scale"], config.norm_eps
  streams = jnp.concatenate([own[None].astype(edited.dtype), edited])
  hidden = rms_norm(streams, scale, eps).reshape(-1, config.width)
  count, positions = len(streams), targets.size
  columns, cap = hidden.T, config.final_softcap

  def add(carry, rows):
    """One more chunk into the sums of each part."""
    top, total, cross = carry  # [P, R + 1, X] twice, [P, R, X]
    logits = vocabulary.soft_cap(
      vocabulary.chunk_logits(rows, columns, precision), cap
    )
    logits = logits.reshape(*logits.shape[:2], count, positions)
    high = jnp.maximum(top, jnp.max(logits, axis=1))
    shrink = jnp.exp(top - high)
    weights = jnp.exp(logits - high[:, None])
    gap = logits[:, :, :1] - logits[:, :, 1:]
    cross = cross * shrink[:, :1] + (weights[:, :, :1] * gap).sum(axis=1)
    return (high, total * shrink + weights.sum(axis=1), cross), ()

  parts = vocabulary.part_count(table.shape[0])
  full = lambda number, value: jnp.full(
    (parts, number, positions), value, jnp.float32
  )
  carry = full(count, -jnp.inf), full(count, 0), full(count - 1, 0)
  (top, total, cross), _ = vocabulary.fold(add, carry, table, chunk)
  normaliser = jax.nn.logsumexp(top + jnp.log(total), axis=0)  # [R + 1, X]
  cross = (cross * jnp.exp(top[:, :1] - normaliser[None, :1])).sum(axis=0)
  repeated = jnp.broadcast_to(targets, (count, *targets.shape))
  right = vocabulary.soft_cap(
    vocabulary.target_logits(table, hidden, repeated, precision), cap
  )
  losses = normaliser - right.reshape(count, positions)
  shape = (count - 1, *targets.shape)
  return Divergence(
    losses[1:].reshape(shape),
    (cross - normaliser[:1] + normaliser[1:]).reshape(shape),
  )
