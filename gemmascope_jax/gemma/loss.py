"""Next-token cross-entropy with the vocabulary in chunks.

Logits of 1,024 tokens over 262,144 words are 1 GiB; the loss needs only their
log-sum-exp and the one of the right word. So the vocabulary is taken a chunk
at a time, with a running maximum and sum (online log-sum-exp), forwards and,
recomputed, backwards: no [S * T, V] is ever held.

Letters: S sequences, T tokens, X = S * T, D width, V vocabulary, P parts of
the vocabulary, C rows of each part in a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.layers import Precision, rms_norm
from gemmascope_jax.gemma.model import PRECISION, forward

Array = jax.Array


# Every chunk takes rows from all of up to this many equal parts of the
# vocabulary: where it is sharded, all devices work on every chunk, each on its
# own rows.
_PARTS = 16


def token_losses(
  config: GemmaConfig,
  params: Mapping[str, Any],
  residual: Array,
  targets: Array,
  *,
  chunk: int = 2048,
  precision: Precision = PRECISION,
) -> Array:
  """Cross-entropy of each target given the residual stream at its position.

  Final norm, tied unembedding and final soft-cap as in `forward`; computed in
  float32. Differentiable in the residual stream and the parameters.

  Args:
    config: the architecture.
    params: needs `embedder` and `final_norm`.
    residual: [S, T, D], after the last layer, before the final norm.
    targets: int [S, T], the token that comes next at each position.
    chunk: words in a chunk; at any time about chunk x S * T logits exist.
    precision: of the matrix products.

  Returns:
    float32 [S, T], nats.

  Raises:
    ValueError: targets and residual do not fit, or chunk is not positive.
  """
  if residual.shape != (*targets.shape, config.width):
    raise ValueError(
      f"residual of shape {residual.shape} for targets of shape"
      f" {targets.shape}: expected {(*targets.shape, config.width)}"
    )
  if chunk < 1:
    raise ValueError(f"chunk = {chunk}: expected at least one word")
  table = params["embedder"]["embedding"]
  hidden = rms_norm(residual, params["final_norm"]["scale"], config.norm_eps)
  hidden = hidden.reshape(-1, config.width)
  right = jnp.einsum(
    "xd,xd->x",
    hidden.astype(jnp.float32),
    jnp.take(table, targets.reshape(-1), axis=0, mode="fill").astype(
      jnp.float32
    ),
    precision=precision,
  )
  right = _cap(right, config.final_softcap)
  total = _log_sum_exp(table, hidden, config.final_softcap, chunk, precision)
  return (total - right).reshape(targets.shape)


def _cap(logits: Array, cap: float | None) -> Array:
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def _log_sum_exp(
  table: Array,
  hidden: Array,
  cap: float | None,
  chunk: int,
  precision: Precision,
) -> Array:
  """[V, D], [X, D] -> float32 [X]: log of the summed exp of the logits."""
  words, width = table.shape
  parts = next(p for p in range(_PARTS, 0, -1) if words % p == 0)
  table = table.reshape(parts, words // parts, width)
  step = max(1, min(chunk, words) // parts)
  whole, rest = divmod(words // parts, step)
  columns = hidden.T  # [D, X]: words come first, so sums over them vectorise

  @jax.checkpoint
  def add(carry, rows):
    """One more chunk: rows [P, C, D] into the running maximum and sum."""
    top, total = carry
    logits = jnp.einsum(
      "pcd,dx->pcx",
      rows,
      columns,
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    logits = _cap(logits, cap)
    high = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(logits, axis=1)))
    total = total * jnp.exp(top - high) + jnp.sum(
      jnp.exp(logits - high[:, None]), axis=1
    )
    return high, total

  def scanned(carry, index):
    rows = jax.lax.dynamic_slice_in_dim(table, index * step, step, axis=1)
    return add(carry, rows), None

  carry = (
    jnp.full((parts, hidden.shape[0]), -jnp.inf, jnp.float32),
    jnp.zeros((parts, hidden.shape[0]), jnp.float32),
  )
  carry, _ = jax.lax.scan(scanned, carry, jnp.arange(whole))
  if rest:
    carry = add(carry, table[:, whole * step :])
  top, total = carry
  return jax.nn.logsumexp(top + jnp.log(total), axis=0)


def next_token_losses(
  config: GemmaConfig,
  params: Mapping[str, Any],
  tokens: Array,
  *,
  edits: Mapping[str, Any] | None = None,
  mask: Array | None = None,
  start: tuple[int, Array] | None = None,
  chunk: int = 2048,
  precision: Precision = PRECISION,
) -> Array:
  """Cross-entropy of every token but the first, given those before it.

  Args:
    config: the architecture.
    params: all its parameters (from layer `start[0]`, if given).
    tokens: int [S, T].
    edits: as in `forward`.
    mask: as in `forward`; losses at or about padding mean nothing.
    start: as in `forward`.
    chunk: as in `token_losses`.
    precision: of the matrix products.

  Returns:
    float32 [S, T - 1], nats: entry t is about `tokens[:, t + 1]`.
  """
  out = forward(
    config,
    params,
    tokens,
    edits=edits,
    mask=mask,
    logits=False,
    start=start,
    precision=precision,
  )
  return token_losses(
    config,
    params,
    out.residual[:, :-1],
    tokens[:, 1:],
    chunk=chunk,
    precision=precision,
  )
