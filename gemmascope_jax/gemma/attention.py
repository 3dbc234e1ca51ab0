"""Grouped-query attention with a sliding window, up to before W_O.

Letters: S sequences, T tokens, C slots of a cache, Q queries and R keys of one
block, D width, N query heads, K key-value heads, G = N / K, H head width.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemmascope_jax.gemma import kv_cache
from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.layers import Precision, RMSNorm, apply_rope

Array = jax.Array

# Finite, so that a query that sees no key (padding) gives no NaN.
_HIDDEN = -(2.0**126)

# Queries are taken in blocks; a block's keys end with it and, in local layers,
# start a window before it. That skips work that causality would throw away.
_MIN_BLOCK = 128
_MAX_BLOCKS = 4


class Attention(nn.Module):
  """Queries, keys and values; attention; W_O."""

  config: GemmaConfig
  local: bool
  dtype: jnp.dtype
  precision: Precision
  across_positions: bool = True

  @nn.compact
  def __call__(
    self,
    x: Array,
    rope: tuple[Array, Array],
    mask: Array | None,
    between: Callable[[Array], Array],
    cached: kv_cache.KeysValues | None = None,
    slot: int | Array = 0,
  ) -> tuple[Array, kv_cache.KeysValues | None]:
    """Attends.

    Args:
      x: [S, T, D], normalised.
      rope: this kind of layer's tables, from `layers.rope_tables`.
      mask: bool [S, T], with a cache [S, C], True for real tokens; None: all
        are.
      between: applied to the heads side by side, [S, T, N * H], before W_O.
      cached: keys and values of the tokens before; None: these are the first.
      slot: of the cache that the first of these tokens takes.

    Returns:
      [S, T, D], and the cache with these tokens.
    """
    config = self.config
    init = nn.initializers.normal(0.02)

    def project(name: str, heads: int) -> Array:
      shape = (config.width, heads, config.head_dim)
      weight = self.param(name, init, shape, self.dtype)
      return jnp.einsum("std,dnh->stnh", x, weight, precision=self.precision)

    q = project("q", config.num_heads)
    k = project("k", config.num_kv_heads)
    v = project("v", config.num_kv_heads)
    if config.qk_norm:
      q = RMSNorm(config.norm_eps, self.dtype, name="q_norm")(q)
      k = RMSNorm(config.norm_eps, self.dtype, name="k_norm")(k)
    q = apply_rope(q, rope, config.query_pre_attn_scalar**-0.5)
    k = apply_rope(k, rope, 1.0)
    if cached is not None:
      k, v = cached = kv_cache.write(cached, (k, v), slot)
    z = attend(
      q,
      k,
      v,
      mask,
      window=config.window if self.local else None,
      softcap=config.attn_softcap,
      precision=self.precision,
      offset=slot,
      across_positions=self.across_positions,
    )
    z = between(z.reshape(*x.shape[:-1], -1))
    weight = self.param(
      "o", init, (config.num_heads, config.head_dim, config.width), self.dtype
    )
    out = jnp.einsum(
      "stz,zd->std",
      z,
      weight.reshape(-1, config.width),
      precision=self.precision,
    )
    return out, cached


def attend(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None = None,
  *,
  window: int | None,
  softcap: float | None,
  precision: Precision,
  block: int | None = None,
  offset: int | Array = 0,
  across_positions: bool = True,
) -> Array:
  """Causal attention, soft-capped before the mask, softmax in float32.

  Args:
    q: [S, T, N, H], scaled.
    k: [S, C, K, H]; C is T, or the slots of a cache.
    v: [S, C, K, H].
    mask: bool [S, C], True for real tokens: others are no keys. None: all are.
    window: query i sees keys j with 0 <= i - j < window; None: all before it.
    softcap: scores become cap * tanh(score / cap); None: they stay.
    precision: of the matrix products.
    block: queries that are taken together; does not change the result. None:
      chosen from T.
    offset: the first query stands where key `offset` does. If it is traced, no
      key can be left out beforehand, and all are looked at.
    across_positions: False: the same values, but no gradient from a query's
      output to the keys and values of other positions. Then `offset` must be a
      Python int.

  Returns:
    [S, T, N, H] in the dtype of v. Finite even where no key is seen.
  """
  sequences, tokens, heads, width = q.shape
  kv_heads = k.shape[2]
  # The products below are plain batched matrices, rows (query, group): with
  # one key-value head all of these transpositions are free.
  grouped = q.reshape(sequences, tokens, kv_heads, -1, width)
  grouped = grouped.transpose(0, 2, 1, 3, 4)  # [S, K, T, G, H]
  k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [S, K, T, H]
  if block is None:
    block = max(_MIN_BLOCK, -(-tokens // _MAX_BLOCKS))
  outputs = []
  for start in range(0, tokens, block):
    stop = min(start + block, tokens)
    first, last = 0, k.shape[2]
    if isinstance(offset, int):
      first = 0 if window is None else max(0, offset + start - window + 1)
      last = offset + stop
    behind = (offset + start + jnp.arange(stop - start))[:, None] - (
      first + jnp.arange(last - first)
    )[None, :]
    visible = behind >= 0
    if window is not None and last - first > window:
      visible &= behind < window
    visible = visible[None, None, :, None, :]
    if mask is not None:
      visible &= mask[:, None, None, None, first:last]
    outputs.append(
      _attend_block(
        grouped[:, :, start:stop],
        k[:, :, first:last],
        v[:, :, first:last],
        visible,
        softcap,
        precision,
        None if across_positions else offset + start - first,
      )
    )
  out = jnp.concatenate(outputs, axis=2)  # [S, K, T, G, H]
  return out.transpose(0, 2, 1, 3, 4).reshape(q.shape)


def _attend_block(q, k, v, visible, softcap, precision, own=None) -> Array:
  """[S,K,Q,G,H], [S,K,R,H] twice, bool [S,1,Q,1,R] -> [S,K,Q,G,H].

  With `own`, the place of the first query's own key, gradients reach the key
  and value of the query's own position only.
  """
  sequences, kv_heads, queries, group, width = q.shape
  if own is not None:
    # Zeros, whose gradient is that of each query's own key and value.
    mine = lambda x: x[:, :, own : own + queries, None]
    own_k = mine(k - jax.lax.stop_gradient(k))  # [S, K, Q, 1, H]
    own_v = mine(v - jax.lax.stop_gradient(v))
    k, v = jax.lax.stop_gradient(k), jax.lax.stop_gradient(v)
    diagonal = (
      jnp.arange(k.shape[2])[None, :] == own + jnp.arange(queries)[:, None]
    )[None, None, :, None, :]
  batched = ((0, 1), (0, 1))
  scores = jax.lax.dot_general(
    q.reshape(sequences, kv_heads, queries * group, width),
    k,
    (((3,), (3,)), batched),
    precision=precision,
    preferred_element_type=jnp.float32,
  ).reshape(sequences, kv_heads, queries, group, -1)
  if own is not None:
    mine = (jax.lax.stop_gradient(q) * own_k).sum(axis=-1, keepdims=True)
    scores += diagonal * mine.astype(jnp.float32)
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  scores = jnp.where(visible, scores, _HIDDEN)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = jax.lax.dot_general(
    weights.astype(v.dtype).reshape(sequences, kv_heads, queries * group, -1),
    v,
    (((3,), (2,)), batched),
    precision=precision,
    preferred_element_type=jnp.float32,
  ).reshape(q.shape)
  if own is not None:
    out += (weights * diagonal).sum(axis=-1, keepdims=True) * own_v
  return (out / total).astype(v.dtype)
