"""How much of the machine's arithmetic a step uses.

Letters: B batch rows, D width of the input, E of the target, M latents, n side
of a square matrix.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.precision import dot

_SMALLEST, _LARGEST = 512, 8192  # n
_LONG_ENOUGH_S = 0.02
_REPEATS = 5


def step_flops(
  recipe: Recipe, inputs: int, outputs: int, active: float | None = None
) -> float:
  """Floating-point operations of one training step, by formula.

  Only products with the weights count: each is 2 B M times the width of its
  vectors. A dense step has two with the encoder (forward, its gradient) and
  three with the decoder (forward, both gradients): 10 B D M for an SAE. A
  sparse step has the encoder's forward over all latents, the rest over those
  that are active.

  Args:
    recipe: width and batch size are read.
    inputs: D.
    outputs: E.
    active: latents of a row in a sparse step; None: the step is dense.
  """
  rows, latents = recipe.batch_size, recipe.width
  if active is None:
    active = latents
  return 2 * rows * (inputs * (latents + active) + 3 * outputs * active)


@functools.cache
def peak(precision: str, mesh: Mesh | None = None) -> float:
  """The matrix products that the devices reach, in operations a second.

  Measured once a process, in about 0.3 seconds: the best of square products
  that are large enough to take 20 ms.

  Args:
    precision: one of `precision.PRECISIONS`.
    mesh: devices; None: the default one.
  """
  product = jax.jit(functools.partial(dot, axes=(1, 0), precision=precision))
  # This process's devices only, so that processes need not agree on sizes.
  here, everywhere = None, 1
  if mesh is not None:
    here, everywhere = Mesh(mesh.local_devices, "all"), mesh.size
  devices = 1 if here is None else here.size

  def seconds(n: int) -> float:
    # Each device has rows of its own, and all of the other matrix.
    a, b = jnp.ones((n * devices, n)), jnp.ones((n, n))
    if here is not None:
      a = jax.device_put(a, NamedSharding(here, PartitionSpec("all")))
      b = jax.device_put(b, NamedSharding(here, PartitionSpec()))
    product(a, b).block_until_ready()
    start = time.monotonic()
    product(a, b).block_until_ready()
    return time.monotonic() - start

  n = _SMALLEST
  while n < _LARGEST and seconds(n) < _LONG_ENOUGH_S:
    n *= 2
  return 2 * n**3 * everywhere / min(seconds(n) for _ in range(_REPEATS))
