"""What attention keeps of the tokens before: their keys and values.

A cache has a fixed number of slots, filled from the first on, the same for all
sequences. A slot may hold padding, which is no key; so sequences of different
lengths are padded on the left, and grow together.

Letters: S sequences, T tokens, C slots, K key-value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemmascope_jax.gemma.config import GemmaConfig

Array = jax.Array
KeysValues = tuple[Array, Array]


class Cache(flax.struct.PyTreeNode):
  """Keys and values of the first `length` slots; see `empty`.

  Attributes:
    layers: {"layer_3": (keys, values)}, each [S, C, K, H]; keys after RoPE.
    mask: bool [S, C], True for slots that hold a real token.
    length: filled slots. A Python int lets attention leave out, when it is
      traced, what no query sees; in a loop it is int32 [].
  """

  layers: dict[str, KeysValues]
  mask: Array
  length: int | Array

  @property
  def capacity(self) -> int:
    """C."""
    return self.mask.shape[1]

  def extend(self, mask: Array) -> tuple[Cache, Array]:
    """Takes T more slots, whose keys and values the layers have yet to write.

    Args:
      mask: bool [S, T].

    Returns:
      The cache, and the tokens' positions, int32 [S, T]: real tokens before
      each.
    """
    tokens = mask.shape[1]
    whole = jax.lax.dynamic_update_slice_in_dim(
      self.mask, mask, self.length, axis=1
    )
    counted = jnp.cumsum(whole.astype(jnp.int32), axis=1) - 1
    positions = jax.lax.dynamic_slice_in_dim(
      jnp.maximum(counted, 0), self.length, tokens, axis=1
    )
    return self.replace(mask=whole, length=self.length + tokens), positions


def empty(
  config: GemmaConfig,
  sequences: int,
  capacity: int,
  dtype: Any,
  layers: Iterable[int] | None = None,
) -> Cache:
  """A cache without tokens.

  Args:
    config: the architecture.
    sequences: S.
    capacity: C, tokens that it has room for, padding included.
    dtype: of the parameters.
    layers: that will run; None: all.

  Raises:
    ValueError: sequences or capacity below 1.
  """
  if sequences < 1 or capacity < 1:
    raise ValueError(
      f"a cache for {sequences} sequences of {capacity} tokens: expected at"
      " least 1 of each"
    )
  shape = (sequences, capacity, config.num_kv_heads, config.head_dim)
  layers = range(config.num_layers) if layers is None else layers
  return Cache(
    layers={
      f"layer_{layer}": (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
      for layer in layers
    },
    mask=jnp.zeros((sequences, capacity), jnp.bool_),
    length=0,
  )


def write(cached: KeysValues, new: KeysValues, slot: int | Array) -> KeysValues:
  """Keys and values [S, C, K, H] with new ones [S, T, K, H] from a slot on."""
  keys, values = (
    jax.lax.dynamic_update_slice_in_dim(whole, part, slot, axis=1)
    for whole, part in zip(cached, new, strict=True)
  )
  return keys, values


def check(
  config: GemmaConfig,
  cache: Cache,
  shape: tuple[int, ...],
  layers: Iterable[int],
  dtype: Any,
) -> None:
  """Refuses a cache that can't take tokens of a shape [S, T].

  Args:
    config: the architecture.
    cache: see `empty`.
    shape: of the tokens.
    layers: that run.
    dtype: of the parameters.

  Raises:
    ValueError: it lacks a layer, is of other sequences or another dtype, or is
      known to be full.
  """
  names = [f"layer_{layer}" for layer in layers]
  missing = [name for name in names if name not in cache.layers]
  if missing:
    raise ValueError(
      f"the cache lacks {', '.join(missing)} of {config.name}, which run here:"
      " make it with kv_cache.empty(..., layers=...)"
    )
  sequences, tokens = shape
  if sequences != cache.mask.shape[0]:
    raise ValueError(
      f"a cache of {cache.mask.shape[0]} sequences for tokens of shape {shape}"
    )
  for name in names:
    found = cache.layers[name][0].dtype
    if found != dtype:
      raise ValueError(
        f"the cache holds {found}, but the parameters of {config.name} are"
        f" {dtype}: expected the same"
      )
  filled = cache.length
  if isinstance(filled, int) and filled + tokens > cache.capacity:
    raise ValueError(
      f"the cache has room for {cache.capacity} tokens and holds {filled}:"
      f" {tokens} more don't fit; make a larger one"
    )
