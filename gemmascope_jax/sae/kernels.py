"""Loops for the CPU where XLA's own are slow: sparse products, Adam's update.

XLA's gathers and scatters on the CPU cost more than the dense products that
they would replace, so these few loops are C++ (`sparse_kernels.cc`), called
through XLA's foreign function interface. They are compiled on first use, by the
machine's C++ compiler for this very machine, into a cache folder; where there
is no compiler, `available` is false and training steps are dense.

Results do not depend on the number of threads, to the bit.

Letters: B rows of the batch, M latents, E width of a vector; V lines of K slots
hold a code, see `Slots`.
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
_FLAGS = ("-O3", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC")
_NATIVE = "-march=native"  # which some compilers for ARM do not know
# Not -ffast-math: sums keep their order, and NaN stays NaN.
_TARGETS = ("Choose", "Combine", "Dots", "Outer", "Total", "AdamRows")


class Slots(NamedTuple):
  """Where the latents of a code are: V lines of K slots.

  Line b holds the first K latents of row b; a row that has more goes on in lines
  after the B-th, which follow each other.

  Attributes:
    indices: int32 [V, K], numbers of latents, increasing in a row; 0 past them.
    counts: int32 [V], how many of the K are used.
    rows: int32 [V], the row that a line belongs to; B: to none.
  """

  indices: jax.Array
  counts: jax.Array
  rows: jax.Array


class Chosen(NamedTuple):
  """The latents of each row above a bound, as `choose` finds them.

  Attributes:
    values: float32 [V, K], `linear` of those; `NEVER` in slots not used.
    slots: see `Slots`.
    needed: int32 scalar, lines that all of them need; with more than V, some
      are missing, and the code must not be used.
  """

  values: jax.Array
  slots: Slots
  needed: jax.Array


def choose(
  linear: jax.Array,
  offset: jax.Array,
  bound: jax.Array,
  lines: int,
  slots: int,
) -> Chosen:
  """The latents whose linear + offset is above a bound.

  Args:
    linear: float32 [B, M].
    offset: float32 [M].
    bound: float32 [1 or B, 1 or M].
    lines: V, at least B.
    slots: K.
  """
  integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  values, indices, counts, rows, needed = _call(
    "Choose",
    (
      _floats((lines, slots)),
      integers(lines, slots),
      integers(lines),
      integers(lines),
      integers(1),
    ),
    linear,
    offset,
    bound,
  )
  return Chosen(values, Slots(indices, counts, rows), needed[0])


def combine(values, matrix, slots: Slots, rows: int) -> jax.Array:
  """sum over a row's entries of value matrix[index]: [B, E] for [M, E]."""
  shape = (rows, matrix.shape[1])
  return _call("Combine", _floats(shape), values, matrix, *slots)


def dots(vectors, matrix, slots: Slots) -> jax.Array:
  """vectors[row] . matrix[index]: [V, K] for vectors [B, E]; 0 if not used."""
  return _call("Dots", _floats(slots.indices.shape), vectors, matrix, *slots)


def outer(values, vectors, slots: Slots, width: int) -> jax.Array:
  """sum over a latent's entries of value vectors[row]: [M, E] for [B, E]."""
  shape = (width, vectors.shape[1])
  return _call("Outer", _floats(shape), values, vectors, *slots)


def total(values, slots: Slots, width: int) -> jax.Array:
  """sum over a latent's entries of value: [M]."""
  return _call("Total", _floats((width,)), values, slots.indices, slots.counts)


def adam_rows(w, gradient, nu, mu, numbers) -> tuple[jax.Array, ...]:
  """One Adam step on a matrix whose rows are latents, in one pass.

  Args:
    w: float32 [M, E], weights.
    gradient: float32 [M, E].
    nu: float32 [M, E], second moments.
    mu: float32 [M, E], first moments; None with b1 = 0.
    numbers: float32 [7]: learning rate, b1, b2, eps, 1 - b1^t, 1 - b2^t, and 1
      if rows have unit length and keep it (the gradient's part along the row is
      removed before Adam sees it), else 0.

  Returns:
    New weights, second and first moments (None without), and the gradient's
    squared length by row, float32 [M].
  """
  given = jnp.zeros((0,), jnp.float32) if mu is None else mu
  shapes = [_floats(a.shape) for a in (w, nu, given)]
  w, nu, given, squares = _call(
    "AdamRows",
    (*shapes, _floats((w.shape[0],))),
    w,
    gradient,
    nu,
    given,
    numbers,
    input_output_aliases={0: 0, 2: 1, 3: 2},
  )
  return w, nu, None if mu is None else given, squares


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


def _call(name: str, result, *arguments, **options):
  _register()
  call = jax.ffi.ffi_call(f"gemmascope_{name.lower()}", result, **options)
  return call(*arguments)


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
  command += ["-o", temporary]
  try:
    if subprocess.run([*command, _NATIVE], capture_output=True).returncode:
      subprocess.run(command, check=True, capture_output=True)
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
