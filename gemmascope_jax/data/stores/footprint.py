"""What a forward pass of the harvest asks of each device, from its compilation.

Shapes are enough: no weight is read, and a model that no machine here could
hold compiles all the same, for as many devices as there are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemmascope_jax import gemma, parallel
from gemmascope_jax.data.stores import forward
from gemmascope_jax.gemma.weights import layout
from gemmascope_jax.parallel import rules

_GIB = 2**30
# The CPU's compiler orders operations for more threads, so that weights in
# parts would all be whole at once; accelerators' compilers order for memory.
_FOR_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@dataclasses.dataclass(frozen=True)
class Footprint:
  """Of one pass over a batch; bytes and operations are those of one device.

  Attributes:
    model: its name.
    mesh: size of each axis; empty for one device.
    batch: sequences, of all devices.
    window: tokens in each.
    weights: bytes of the arguments: parameters, tokens and mask.
    temporaries: bytes needed beside them while it runs.
    outputs: bytes of the activations.
    held: passes whose activations are there at once: a harvest's are copied to
      the host while the next is computed.
    flops: operations, as the compiler counts them.
    moved: bytes that operations read and write, as the compiler counts them.
    kept_whole: parameters that the mesh can't split, and why.
  """

  model: str
  mesh: dict[str, int]
  batch: int
  window: int
  weights: int
  temporaries: int
  outputs: int
  held: int
  flops: float
  moved: float
  kept_whole: dict[str, str]

  @property
  def peak(self) -> int:
    """Bytes: most that are held at once."""
    return self.weights + self.temporaries + self.held * self.outputs

  @property
  def device_tokens(self) -> float:
    """Tokens of the batch, by the number of devices."""
    devices = 1
    for size in self.mesh.values():
      devices *= size
    return self.batch * self.window / devices

  def tokens_per_second(self, peak_flops: float, bandwidth: float) -> float:
    """Most that a device can do: whichever of its two limits is nearer.

    Traffic between devices is not counted.

    Args:
      peak_flops: operations a second of a device.
      bandwidth: bytes a second from and to its memory.

    Returns:
      Tokens a second, for each device.
    """
    seconds = max(self.flops / peak_flops, self.moved / bandwidth)
    return self.device_tokens / seconds

  def describe(self) -> str:
    """One line on memory and work, and one on what stays whole."""
    where = " x ".join(f"{k} {v}" for k, v in self.mesh.items()) or "one device"
    said = (
      f"{self.model} on {where}, {self.batch} sequences of {self.window}: each"
      f" device holds {self.peak / _GIB:.2f} GiB (weights"
      f" {self.weights / _GIB:.2f}, temporaries {self.temporaries / _GIB:.2f},"
      f" activations {self.held} x {self.outputs / _GIB:.2f}), and does"
      f" {self.flops / self.device_tokens / 1e9:.3g} GFLOP and moves"
      f" {self.moved / self.device_tokens / 1e6:.3g} MB a token"
    )
    if self.kept_whole:
      whole = ", ".join(f"{k}: {v}" for k, v in self.kept_whole.items())
      said += f"\nnot split, but whole on each device: {whole}"
    return said


def measure(
  config: gemma.GemmaConfig,
  sites: tuple[str, ...],
  *,
  batch: int,
  window: int,
  compute_dtype: Any,
  dtype: str,
  mesh: Mesh | None = None,
  fully_sharded: bool = False,
  held: int = 1,
) -> Footprint:
  """Compiles a pass and asks the compiler.

  Args:
    config: the model.
    sites: up to whose last layer it runs.
    batch: sequences, of all devices.
    window: tokens in each.
    compute_dtype: of the parameters.
    dtype: of the activations.
    mesh: the devices; None: the default one.
    fully_sharded: whether parameters are split along "data", too.
    held: see `Footprint`.

  Raises:
    ValueError: a site that the model lacks, or a batch that can't be split.
  """
  ways = 1 if mesh is None else mesh.shape.get(parallel.DATA, 1)
  if batch % ways:
    raise ValueError(
      f"batch {batch}: the mesh splits it {ways} ways (its axis"
      f" {parallel.DATA!r}); use a multiple of {ways}"
    )
  names = tuple(str(gemma.sites.check(config, site)) for site in sites)
  table = rules.for_lm(fully_sharded)
  params = layout.shapes(
    config,
    num_layers=gemma.sites.layers_needed(config, names),
    dtype=compute_dtype,
    mesh=mesh,
    partition=table,
  )
  split = None if mesh is None else forward.by_sequence(mesh)
  given = lambda kind: jax.ShapeDtypeStruct(
    (batch, window), kind, sharding=split
  )
  compiled = forward.taps.lower(
    params,
    given(jnp.int32),
    given(jnp.bool_),
    config=config,
    sites=names,
    dtype=dtype,
    mesh=mesh,
  ).compile(_FOR_MEMORY if jax.default_backend() == "cpu" else None)
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  return Footprint(
    model=config.name,
    mesh={} if mesh is None else dict(mesh.shape),
    batch=batch,
    window=window,
    weights=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    outputs=memory.output_size_in_bytes,
    held=held,
    flops=cost["flops"],
    moved=cost["bytes accessed"],
    kept_whole={} if mesh is None else rules.kept_whole(params, mesh, table),
  )
