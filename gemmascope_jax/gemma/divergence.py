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

from gemmascope_jax.gemma import on_mesh, vocabulary
from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.layers import Precision, rms_norm
from gemmascope_jax.gemma.model import PRECISION

Array = jax.Array


class Divergence(NamedTuple):
  """Of the model and of each edited stream, at each position.

  Attributes:
    own_losses: float32 [S, T], the unedited model's cross-entropy, nats.
    losses: float32 [R, S, T], cross-entropy of the targets, nats.
    kl: float32 [R, S, T], KL(own || edited) of the next token, nats; off by
      rounding of about 1e-6 times the logits' size, to either side.
  """

  own_losses: Array
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
  table = on_mesh.embedding(params)
  scale, eps = params["final_norm"]["scale"], config.norm_eps
  cap = config.final_softcap
  hidden = [
    rms_norm(stream, scale, eps).reshape(-1, config.width)
    for stream in (own, *edited)
  ]

  def add(carry, rows):
    """One more chunk into the sums of each part, [P, X] each.

    A product for each stream and not one for all, so that a stream's losses are
    the same bits whatever others there are, and its KL is to rounding.
    """
    first, *others = (
      vocabulary.soft_cap(vocabulary.chunk_logits(rows, each.T, precision), cap)
      for each in hidden
    )
    (top, total), sums = carry
    high = jnp.maximum(top, jnp.max(first, axis=1))
    shrink, weights = jnp.exp(top - high), jnp.exp(first - high[:, None])
    found = []
    for logits, (their_top, their_total, cross) in zip(
      others, sums, strict=True
    ):
      new = jnp.maximum(their_top, jnp.max(logits, axis=1))
      mass = jnp.exp(logits - new[:, None]).sum(axis=1)
      gap = (weights * (first - logits)).sum(axis=1)
      found.append(
        (
          new,
          their_total * jnp.exp(their_top - new) + mass,
          cross * shrink + gap,
        )
      )
    return ((high, total * shrink + weights.sum(axis=1)), found), ()

  shape = (vocabulary.part_count(table.shape[0]), targets.size)
  lowest = jnp.full(shape, -jnp.inf, jnp.float32)
  zero = jnp.zeros(shape, jnp.float32)
  carry = (lowest, zero), [(lowest, zero, zero)] * len(edited)
  ((top, total), sums), _ = vocabulary.fold(add, carry, table, chunk)
  normaliser = jax.nn.logsumexp(top + jnp.log(total), axis=0)  # [X]

  def loss(stream, log_total):
    right = vocabulary.target_logits(table, stream, targets, precision)
    return log_total - vocabulary.soft_cap(right, cap)

  losses, kl = [], []
  for each, (their_top, their_total, cross) in zip(
    hidden[1:], sums, strict=True
  ):
    theirs = jax.nn.logsumexp(their_top + jnp.log(their_total), axis=0)
    cross = (cross * jnp.exp(top - normaliser[None])).sum(axis=0)
    losses.append(loss(each, theirs))
    kl.append(cross - normaliser + theirs)
  shaped = lambda values: jnp.stack(values).reshape(-1, *targets.shape)
  own_losses = loss(hidden[0], normaliser).reshape(targets.shape)
  return Divergence(own_losses, shaped(losses), shaped(kl))
