"""A language model in a number format.

In bfloat16 and float16 the model computes in that format, as `forward` does
with parameters of it: all but norms, softmax and the loss, which are float32
inside. In int8 and int4 its matrices are rounded, one scale an output channel
and, in the embedding, one a token; norms stay as they are. They are made
float32 again and so is what is computed: the numbers of a kernel that reads
such weights, though neither its memory nor its speed.

Letters: those of `gemma.weights.layout`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from gemmascope_jax import artifacts
from gemmascope_jax.gemma.weights import layout
from gemmascope_jax.studies.precision import formats

# What a scale is shared along, by a leaf's letters: all but its outputs.
_AXES = {
  "VD": (1,),
  "DNH": (0,),
  "DKH": (0,),
  "NHD": (0, 1),
  "DF": (0,),
  "FD": (0,),
}


def lm_in(lm, format: str) -> Any:
  """A `Gemma` with its weights in a format; float32: the model itself.

  Args:
    lm: in float32.
    format: one of `formats.FORMATS`.

  Raises:
    ValueError: an unknown format, or a model that is not float32.
  """
  formats.check(format)
  check(lm)
  if format == "float32":
    return lm
  params: dict[str, Any] = {}
  for path, letters in _leaves(lm).items():
    array = _leaf(lm.params, path)
    if letters in _AXES:
      array = formats.store(array, format, _AXES[letters]).matrix()
    else:
      array = jnp.asarray(array).astype(formats.dtype(format))
    *parents, name = path.split("/")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = array
  return dataclasses.replace(
    lm,
    params=params,
    weights_hash=artifacts.fingerprint([lm.weights_hash, format]),
    label=f"{lm.label}, {format}",
  )


def check(lm) -> None:
  """Refuses a model that is not float32, with which all is compared.

  Raises:
    ValueError: says what it is.
  """
  found = {str(leaf.dtype) for leaf in jax.tree.leaves(lm.params)}
  if found != {"float32"}:
    raise ValueError(
      f"{lm.label} is loaded in {', '.join(sorted(found))}: the precision study"
      " compares with float32, so load it with --config.lm.dtype=float32"
    )


def nbytes(lm, format: str) -> int:
  """What the parameters of a model take in a format."""
  each = formats.dtype(format).itemsize
  total = 0
  for path, letters in _leaves(lm).items():
    shape = _leaf(lm.params, path).shape
    if letters in _AXES:
      total += formats.nbytes(shape, format, _AXES[letters])
    else:
      total += each * math.prod(shape)
  return total


def _leaves(lm) -> dict[str, str]:
  layers = sum(name.startswith("layer_") for name in lm.params)
  return layout.leaves(lm.config, layers)


def _leaf(params, path: str) -> jax.Array:
  for name in path.split("/"):
    params = params[name]
  return params
