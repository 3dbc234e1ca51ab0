"""The k-th largest of many numbers, without sorting them.

Positive floats are ordered as their bits are, so the bits of the answer are
found one by one, from the highest, each by counting how many numbers reach a
candidate. That is cheaper than a sort on every device, and a mesh that holds
the numbers in parts adds up counts instead of gathering numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_GROUP = 16
_INTEGERS = {4: jnp.int32, 8: jnp.int64}


def kth(values: jax.Array, k: int, axis: int | None = -1) -> jax.Array:
  """The k-th largest, or 0 if fewer than k are positive.

  Args:
    values: float [..., M].
    k: at least 1; of all together at most 2^24, beyond which counts are
      rounded.
    axis: -1: of every row; None: of all rows together.

  Returns:
    [..., 1] with an axis of 1 for every axis that was searched; it has no
    gradient.
  """
  integer = _INTEGERS[values.dtype.itemsize]
  # Signed: numbers below zero, and -0.0, come before every candidate.
  bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), integer)
  highest = 8 * values.dtype.itemsize - 2

  def reach(candidate):
    rows = (bits >= candidate).sum(axis=-1, keepdims=True, dtype=jnp.int32)
    if axis is not None:
      return rows
    # Not in int32, which [B, M] numbers may overflow.
    return rows.astype(jnp.float32).sum(keepdims=True)

  def body(i, found):
    candidate = found | jnp.left_shift(
      integer(1), (highest - i).astype(integer)
    )
    return jnp.where(reach(candidate) >= k, candidate, found)

  shape = (*values.shape[:-1], 1) if axis is not None else (1,) * values.ndim
  found = jax.lax.fori_loop(0, highest + 1, body, jnp.zeros(shape, integer))
  return jax.lax.bitcast_convert_type(found, values.dtype)


def kth_or_less(values: jax.Array, k: int, axis: int | None = -1) -> jax.Array:
  """A number not above `kth`, and seldom far below it, at a fraction of its cost.

  Of groups of numbers only the largest are looked at: where k groups reach a
  number, at least k numbers do.

  Args:
    values: float [B, M].
    k: as in `kth`.
    axis: as in `kth`.
  """
  rows, width = values.shape
  wanted = k if axis is not None else -(-k // rows)
  size = _GROUP
  while size > 1 and (width % size or width // size < 8 * wanted):
    size //= 2
  return kth(values.reshape(rows, size, -1).max(axis=1), k, axis)


def keep(values: jax.Array, k: int, axis: int | None = -1) -> jax.Array:
  """The k largest, zero in place of the others and of all below zero.

  Numbers equal to the k-th largest are all kept.

  Args:
    values: float [..., M].
    k: as in `kth`.
    axis: as in `kth`.

  Returns:
    [..., M]; the gradient passes through what is kept.
  """
  return jnp.where(values >= kth(values, k, axis), jax.nn.relu(values), 0)
