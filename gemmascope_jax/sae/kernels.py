"""Products with a sparse code on the CPU, where XLA's own are slow.

XLA's gathers and scatters on the CPU cost more than the dense products that
they would replace, so these few loops are C++ (`sparse_kernels.cc`), called
through XLA's foreign function interface. They are compiled on first use, by the
machine's C++ compiler for this very machine, into a cache folder; where there
is no compiler, `available` is false and training steps are dense.

A code is: indices int32 [B, K], the numbers of the latents that count in each
row; counts int32 [B], how many of the K are used; values float32 [B, K].
Results do not depend on the number of threads, to the bit.

Letters: B rows, K slots of a row, M latents, E width of a vector.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from gemmascope_jax import cache

# The value of a slot that is not used: below every threshold, yet finite, so
# that a derivative of zero times it is zero.
NEVER = -1e30
_SOURCE = pathlib.Path(__file__).with_name("sparse_kernels.cc")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
# Not -ffast-math: sums keep their order, and NaN stays NaN.
_TARGETS = ("Choose", "Combine", "Dots", "Outer", "Total")


class Chosen(NamedTuple):
  """The latents of each row above a bound, as `choose` finds them.

  Attributes:
    values: float32 [B, K], in increasing order of latents; `NEVER` past them.
    indices: int32 [B, K]; 0 past them.
    counts: int32 [B], at most K.
    most: int32 scalar, the largest number that any row had; above K some are
      missing, and the code must not be used.
  """

  values: jax.Array
  indices: jax.Array
  counts: jax.Array
  most: jax.Array


def choose(linear: jax.Array, bound: jax.Array, slots: int) -> Chosen:
  """The latents that are above a bound.

  Args:
    linear: float32 [B, M].
    bound: float32 [1, M] or [B, 1].
    slots: K, the room for each row.
  """
  rows = linear.shape[0]
  shape = jax.ShapeDtypeStruct
  values, indices, counts = _call(
    "Choose",
    (
      shape((rows, slots), jnp.float32),
      shape((rows, slots), jnp.int32),
      shape((rows,), jnp.int32),
    ),
    linear,
    bound,
  )
  return Chosen(values, indices, jnp.minimum(counts, slots), counts.max())


def combine(values, matrix, indices, counts) -> jax.Array:
  """sum_k values[b, k] matrix[indices[b, k]]: [B, E] for matrix [M, E]."""
  shape = (values.shape[0], matrix.shape[1])
  return _call("Combine", _floats(shape), values, matrix, indices, counts)


def dots(rows, matrix, indices, counts) -> jax.Array:
  """rows[b] . matrix[indices[b, k]]: [B, K] for rows [B, E], 0 where unused."""
  return _call("Dots", _floats(indices.shape), rows, matrix, indices, counts)


def outer(values, rows, indices, counts, width: int) -> jax.Array:
  """sum over (b, k) of latent m of values[b, k] rows[b]: [M, E]."""
  shape = (width, rows.shape[1])
  return _call("Outer", _floats(shape), values, rows, indices, counts)


def total(values, indices, counts, width: int) -> jax.Array:
  """sum over (b, k) of latent m of values[b, k]: [M]."""
  return _call("Total", _floats((width,)), values, indices, counts)


@functools.cache
def available() -> bool:
  """Whether the sparse products can be had: on the CPU, with a compiler."""
  if jax.default_backend() != "cpu":
    return False
  try:
    _register()
  except (OSError, subprocess.SubprocessError) as error:
    logging.warning(
      "sparse kernels can't be compiled, so training steps are dense, several"
      " times slower: install a C++ compiler, or name one in the environment"
      " variable CXX (%s)",
      error,
    )
    return False
  return True


def _floats(shape) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(name: str, result, *arguments):
  _register()
  return jax.ffi.ffi_call(f"gemmascope_{name.lower()}", result)(*arguments)


@functools.cache
def _register() -> None:
  """Compiles the kernels if needed, and tells XLA of them.

  Raises:
    OSError: no compiler, or no folder to write to.
    subprocess.SubprocessError: the compiler failed.
  """
  library = ctypes.CDLL(str(_library()))
  for name in _TARGETS:
    handler = getattr(library, f"{name}Handler")
    jax.ffi.register_ffi_target(
      f"gemmascope_{name.lower()}", jax.ffi.pycapsule(handler), platform="cpu"
    )


def _library() -> pathlib.Path:
  """The compiled kernels, in the user's cache folder."""
  compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
  if not compiler:
    raise OSError("no C++ compiler found")
  folder = cache.folder("kernels")
  path = folder / f"sparse_kernels_{_fingerprint(compiler)}.so"
  if path.exists():
    return path
  handle, temporary = tempfile.mkstemp(dir=folder, suffix=".incomplete")
  os.close(handle)
  command = [compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", str(_SOURCE)]
  try:
    subprocess.run(
      [*command, "-o", temporary], check=True, capture_output=True, timeout=300
    )
    os.replace(temporary, path)  # whole, or not there
  finally:
    pathlib.Path(temporary).unlink(missing_ok=True)
  return path


def _fingerprint(compiler: str) -> str:
  """Of all that the compiled file depends on, the processor included."""
  import jaxlib

  parts = [_SOURCE.read_text(), *_FLAGS, compiler, jaxlib.__version__]
  parts += [platform.machine(), _processor()]
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
  """What the processor can do; a cache may be shared between machines."""
  try:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith(("flags", "Features")):
        return line
  except OSError:
    pass
  return platform.processor()
