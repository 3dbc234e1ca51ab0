"""Number formats, and weights rounded to them.

The floating formats are computed in: inputs, weights and results of each
operation are numbers of the format, and only the sums inside a matrix product
are float32, as accelerators have them. The integer formats are of weights
alone: a weight is a whole number times a float32 scale that a column or row
shares, symmetric about zero,

  w ~ s q,   s = max |w| / Q,   q = round(w / s) in -Q..Q,

with Q = 127 for int8 and 7 for int4; it is made float32 again for the product.

Rounding is to nearest, ties to even.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

FORMATS = ("float32", "bfloat16", "float16", "int8", "int4")

_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
_LEVELS = {"int8": 127, "int4": 7}  # above zero, and as many below
_SCALE_BYTES = 4


def check(format: str) -> None:
  """Refuses a format that there is not.

  Raises:
    ValueError: names those that there are.
  """
  if format not in FORMATS:
    raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")


def dtype(format: str) -> jnp.dtype:
  """What is computed in: float32 for the formats of weights alone."""
  return jnp.dtype("float32" if format in _LEVELS else format)


class Stored(flax.struct.PyTreeNode):
  """Weights in a format.

  Attributes:
    values: the weights; of an integer format int8 whole numbers.
    scale: float32, of as many axes; None for a floating format.
  """

  values: jax.Array
  scale: jax.Array | None = None

  def matrix(self) -> jax.Array:
    """The weights to compute with, in the format's `dtype`."""
    if self.scale is None:
      return self.values
    return self.values.astype(jnp.float32) * self.scale


def store(weights: jax.Array, format: str, axes: Sequence[int]) -> Stored:
  """Rounds weights to a format.

  Args:
    weights: float32 [...].
    format: one of `FORMATS`.
    axes: along which an integer format shares a scale, such as (0,) for one a
      column.

  Raises:
    ValueError: an unknown format.
  """
  check(format)
  weights = jnp.asarray(weights)
  if format not in _LEVELS:
    return Stored(weights.astype(dtype(format)))
  levels = _LEVELS[format]
  scale = jnp.abs(weights).max(axis=tuple(axes), keepdims=True) / levels
  scale = jnp.where(scale > 0, scale, 1).astype(jnp.float32)
  codes = jnp.clip(jnp.round(weights / scale), -levels, levels)
  return Stored(codes.astype(jnp.int8), scale)


def nbytes(shape: Sequence[int], format: str, axes: Sequence[int]) -> int:
  """What weights of a shape take, two to a byte in int4, with their scales."""
  check(format)
  count = math.prod(shape)
  found = math.ceil(count * _BITS[format] / 8)
  if format in _LEVELS:
    shared = math.prod(shape[axis] for axis in axes)
    found += _SCALE_BYTES * (count // shared)
  return found


def rounded(values: jax.Array, format: str) -> jax.Array:
  """Numbers in the `dtype` that a format is computed in.

  Compilers may leave a rounding out that is followed by more arithmetic (XLA's
  "excess precision"); this one stays.
  """
  if dtype(format) == jnp.float32:
    return values.astype(jnp.float32)
  return jax.lax.optimization_barrier(values.astype(dtype(format)))
