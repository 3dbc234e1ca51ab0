"""The small parts of a block: RMSNorm, RoPE and the gated MLP.

Letters: S sequences, T tokens, D width, F hidden width of the MLP, N heads,
H head width.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Precision = jax.lax.PrecisionLike


def rms_norm(
  x: Array,
  scale: Array,
  eps: float,
  between: Callable[[Array], Array] | None = None,
) -> Array:
  """Root-mean-square norm of the last axis, in float32 throughout.

  Args:
    x: [..., D]; the result has its dtype.
    scale: [D]; the gain is 1 + scale.
    eps: added to the mean square.
    between: applied to the normalised value, float32, before the gain.

  Returns:
    [..., D].
  """
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
  if between is not None:
    y = between(y)
  gain = 1.0 + scale.astype(jnp.float32)
  return (y * jnp.expand_dims(gain, range(x.ndim - 1))).astype(x.dtype)


class RMSNorm(nn.Module):
  """`rms_norm` with its parameter, zero at first."""

  eps: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: Array, between: Callable[[Array], Array] | None = None
  ) -> Array:
    """[..., D] -> [..., D]."""
    zeros = nn.initializers.zeros
    scale = self.param("scale", zeros, (x.shape[-1],), self.dtype)
    return rms_norm(x, scale, self.eps, between)


class MLP(nn.Module):
  """down(gelu(gate x) * up x), GELU by its tanh form, no biases."""

  hidden: int
  dtype: jnp.dtype
  precision: Precision

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[S, T, D] -> [S, T, D]."""
    width = x.shape[-1]
    init = nn.initializers.normal(0.02)
    gate = self.param("gate", init, (width, self.hidden), self.dtype)
    up = self.param("up", init, (width, self.hidden), self.dtype)
    down = self.param("down", init, (self.hidden, width), self.dtype)
    hidden = jax.nn.gelu(
      jnp.einsum("std,df->stf", x, gate, precision=self.precision),
      approximate=True,
    ) * jnp.einsum("std,df->stf", x, up, precision=self.precision)
    return jnp.einsum("stf,fd->std", hidden, down, precision=self.precision)


def rope_tables(
  positions: Array, head_dim: int, base: float, factor: float = 1.0
) -> tuple[Array, Array]:
  """Cosines and sines of the rotary position embedding.

  Args:
    positions: int [S, T] (or [1, T], the same for all sequences).
    head_dim: H.
    base: of the geometric series of wavelengths.
    factor: positions are divided by this ("linear" scaling).

  Returns:
    Two float32 arrays [S, T, 1, 2, H/2]: of the cosine, and of the sine, with
    the sign for the first half of the head negative.
  """
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
  frequencies = np.float32(1.0) / np.float32(base) ** exponents / factor
  angles = positions.astype(jnp.float32)[
    :, :, None, None, None
  ] * frequencies.astype(np.float32).reshape(1, 1, 1, 1, -1)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return (
    jnp.concatenate([cos, cos], axis=3),
    jnp.concatenate([-sin, sin], axis=3),
  )


def apply_rope(x: Array, tables: tuple[Array, Array], scale: float) -> Array:
  """Rotates the two halves of each head against each other.

  Args:
    x: [S, T, N, H].
    tables: from `rope_tables`.
    scale: multiplies the result (the query scale; 1 for keys).

  Returns:
    [S, T, N, H] in the dtype of x, computed in float32.
  """
  cos, sin = (table * scale for table in tables)
  halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
  # Written as a reversal, so that it fuses into one pass over x.
  rotated = halves * cos + halves[..., ::-1, :] * sin
  return rotated.reshape(x.shape).astype(x.dtype)
