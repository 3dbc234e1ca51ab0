"""Matrix products at a chosen precision.

"highest"   float32 throughout, on every device.
"high"      three passes of bfloat16 on a TPU, TF32 on an NVIDIA GPU.
"default"   one pass of bfloat16 on a TPU, TF32 on an NVIDIA GPU.
"bfloat16"  inputs rounded to bfloat16, sums in float32, on every device.

On the CPU the first three are the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

PRECISIONS = ("highest", "high", "default", "bfloat16")


def dot(a: jax.Array, b: jax.Array, axes: tuple[int, int], precision: str):
  """Sums a over axes[0] with b over axes[1]; float32 unless both are float64.

  Args:
    a: float matrix.
    b: float matrix.
    axes: the axis of each that is summed over.
    precision: one of `PRECISIONS`.

  Returns:
    The other axis of a by the other axis of b.
  """
  numbers = (((axes[0],), (axes[1],)), ((), ()))
  if precision == "bfloat16":
    return jax.lax.dot_general(
      a.astype(jnp.bfloat16),
      b.astype(jnp.bfloat16),
      numbers,
      preferred_element_type=jnp.float32,
    )
  return jax.lax.dot_general(a, b, numbers, precision=precision)
