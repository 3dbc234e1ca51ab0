"""The vocabulary a chunk at a time: what losses over it are made of.

Letters: S sequences, T tokens, X = S * T, D width, V vocabulary, P parts of
the vocabulary, C rows of each part in a chunk.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gemmascope_jax.gemma.layers import Precision

Array = jax.Array

# Words in a chunk; measured best on a CPU for 2,048 tokens of Gemma 3 270M.
CHUNK = 1024

# Every chunk takes rows from all of up to this many equal parts of the
# vocabulary: where it is sharded, all devices work on every chunk, each on its
# own rows.
_PARTS = 16


def soft_cap(logits: Array, cap: float | None) -> Array:
  """cap * tanh(logits / cap); None: as they are."""
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def chunk_logits(rows: Array, columns: Array, precision: Precision) -> Array:
  """[P, C, D], [D, X] -> float32 [P, C, X], before the soft-cap."""
  return jnp.einsum(
    "pcd,dx->pcx",
    rows,
    columns,
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def part_count(words: int) -> int:
  """P: the largest number up to `_PARTS` that divides the vocabulary."""
  return next(p for p in range(_PARTS, 0, -1) if words % p == 0)


def fold(add, carry, table: Array, chunk: int):
  """Folds `add` over the table's chunks, rows [P, C, D] each.

  Args:
    add: (carry, rows) -> (carry, array like rows, or an empty tuple).
    carry: the first carry.
    table: [V, D].
    chunk: words in a chunk.

  Returns:
    The last carry, and add's arrays in the order of the table.
  """
  words, width = table.shape
  parts = part_count(words)
  table = table.reshape(parts, words // parts, width)
  step = max(1, min(chunk, words) // parts)
  whole, rest = divmod(words // parts, step)

  def body(carry, index):
    rows = jax.lax.dynamic_slice_in_dim(table, index * step, step, axis=1)
    return add(carry, rows)

  carry, out = jax.lax.scan(body, carry, jnp.arange(whole))
  out = jax.tree.map(_joined, out)
  if rest:
    carry, last = add(carry, table[:, whole * step :])
    out = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), out, last)
  return carry, jax.tree.map(lambda x: x.reshape(words, width), out)


def _joined(chunks: Array) -> Array:
  """[chunks, P, C, D] -> [P, chunks * C, D]."""
  chunks = chunks.swapaxes(0, 1)
  return chunks.reshape(chunks.shape[0], -1, chunks.shape[-1])


def check_targets(config, residual, targets, chunk) -> None:
  """Raises `ValueError` unless [S, T, D] and [S, T] fit, and a chunk is one."""
  if residual.shape != (*targets.shape, config.width):
    raise ValueError(
      f"residual of shape {residual.shape} for targets of shape"
      f" {targets.shape}: expected {(*targets.shape, config.width)}"
    )
  if chunk < 1:
    raise ValueError(f"chunk = {chunk}: expected at least one word")


def target_logits(table, hidden, targets, precision) -> Array:
  """float32 [X]: the logit of each target, before the soft-cap."""
  rows = jnp.take(table, targets.reshape(-1), axis=0, mode="fill")
  return jnp.einsum(
    "xd,xd->x",
    hidden.astype(jnp.float32),
    rows.astype(jnp.float32),
    precision=precision,
  )
