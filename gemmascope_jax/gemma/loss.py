"""Next-token cross-entropy with the vocabulary in chunks.

Logits of 1,024 tokens over 262,144 words are 1 GiB; the loss needs only their
log-sum-exp and the one of the right word. So the vocabulary is taken a chunk
at a time, with a running maximum and sum (online log-sum-exp), forwards and,
recomputed, backwards: no [S * T, V] is ever held.

Letters: S sequences, T tokens, X = S * T, D width, V vocabulary, P parts of
the vocabulary, C rows of each part in a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemmascope_jax.gemma import on_mesh, vocabulary
from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.layers import Precision, rms_norm
from gemmascope_jax.gemma.model import PRECISION, forward

Array = jax.Array


def token_losses(
  config: GemmaConfig,
  params: Mapping[str, Any],
  residual: Array,
  targets: Array,
  *,
  chunk: int = vocabulary.CHUNK,
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
  vocabulary.check_targets(config, residual, targets, chunk)
  table = on_mesh.embedding(params)
  hidden = rms_norm(residual, params["final_norm"]["scale"], config.norm_eps)
  hidden = hidden.reshape(-1, config.width)
  right = vocabulary.target_logits(table, hidden, targets, precision)
  right = vocabulary.soft_cap(right, config.final_softcap)
  total = _log_sum_exp(table, hidden, config.final_softcap, chunk, precision)
  return (total - right).reshape(targets.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _log_sum_exp(
  table: Array,
  hidden: Array,
  cap: float | None,
  chunk: int,
  precision: Precision,
) -> Array:
  """[V, D], [X, D] -> float32 [X]: log of the summed exp of the logits."""
  columns = hidden.T  # [D, X]: words come first, so sums over them vectorise

  def add(carry, rows):
    """One more chunk into each part's running maximum and sum, [P, X]."""
    top, total = carry
    logits = vocabulary.soft_cap(
      vocabulary.chunk_logits(rows, columns, precision), cap
    )
    high = jnp.maximum(top, jnp.max(logits, axis=1))
    total = total * jnp.exp(top - high) + jnp.sum(
      jnp.exp(logits - high[:, None]), axis=1
    )
    return (high, total), ()

  shape = (vocabulary.part_count(table.shape[0]), hidden.shape[0])
  carry = jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.float32)
  (top, total), _ = vocabulary.fold(add, carry, table, chunk)
  return jax.nn.logsumexp(top + jnp.log(total), axis=0)


def _forwards(table, hidden, cap, chunk, precision):
  found = _log_sum_exp(table, hidden, cap, chunk, precision)
  return found, (table, hidden, found)


def _backwards(cap, chunk, precision, saved, gradient):
  """The gradient is the softmax, made again a chunk at a time."""
  table, hidden, found = saved
  columns = hidden.T

  def add(carry, rows):
    """One more chunk into the gradient of the columns, [D, X]."""
    logits = vocabulary.soft_cap(
      vocabulary.chunk_logits(rows, columns, precision), cap
    )
    slope = jnp.exp(logits - found[None, None]) * gradient[None, None]
    if cap is not None:
      slope *= 1.0 - jnp.square(logits / cap)
    slope = slope.astype(rows.dtype)
    product = functools.partial(
      jnp.einsum, precision=precision, preferred_element_type=jnp.float32
    )
    by_rows = product("pcx,dx->pcd", slope, columns).astype(rows.dtype)
    return carry + product("pcd,pcx->dx", rows, slope), by_rows

  carry = jnp.zeros(columns.shape, jnp.float32)
  by_columns, by_table = vocabulary.fold(add, carry, table, chunk)
  return by_table, by_columns.T.astype(hidden.dtype)


_log_sum_exp.defvjp(_forwards, _backwards)


def next_token_losses(
  config: GemmaConfig,
  params: Mapping[str, Any],
  tokens: Array,
  *,
  edits: Mapping[str, Any] | None = None,
  mask: Array | None = None,
  start: tuple[int, Array] | None = None,
  chunk: int = vocabulary.CHUNK,
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


def centred_logits(
  config: GemmaConfig,
  params: Mapping[str, Any],
  residual: Array,
  targets: Array,
  *,
  softcap: bool = True,
  chunk: int = vocabulary.CHUNK,
  precision: Precision = PRECISION,
) -> Array:
  """Logit of each target less the mean logit over the vocabulary.

  Final norm, tied unembedding and final soft-cap as in `forward`; computed in
  float32. Differentiable in the residual stream and the parameters; backwards
  the logits are made again, a chunk at a time.

  Args:
    config: the architecture.
    params: needs `embedder` and `final_norm`.
    residual: [S, T, D], after the last layer, before the final norm.
    targets: int [S, T], the token that comes next at each position.
    softcap: False: logits before the final soft-cap; then the mean logit is
      that of the mean embedding, and no chunk is needed.
    chunk: as in `token_losses`.
    precision: of the matrix products.

  Returns:
    float32 [S, T].

  Raises:
    ValueError: targets and residual do not fit, or chunk is not positive.
  """
  vocabulary.check_targets(config, residual, targets, chunk)
  table = on_mesh.embedding(params)
  hidden = rms_norm(residual, params["final_norm"]["scale"], config.norm_eps)
  hidden = hidden.reshape(-1, config.width)
  cap = config.final_softcap if softcap else None
  right = vocabulary.soft_cap(
    vocabulary.target_logits(table, hidden, targets, precision), cap
  )
  if cap is None:
    centre = table.astype(jnp.float32).mean(axis=0)
    mean = jnp.einsum(
      "xd,d->x", hidden.astype(jnp.float32), centre, precision=precision
    )
  else:
    columns = hidden.T

    @jax.checkpoint
    def add(total, rows):
      """One more chunk into each part's sum of logits, [P, X]."""
      logits = vocabulary.soft_cap(
        vocabulary.chunk_logits(rows, columns, precision), cap
      )
      return total + logits.sum(axis=1), ()

    shape = (vocabulary.part_count(table.shape[0]), hidden.shape[0])
    total, _ = vocabulary.fold(add, jnp.zeros(shape, jnp.float32), table, chunk)
    mean = total.sum(axis=0) / table.shape[0]
  return (right - mean).reshape(targets.shape)
