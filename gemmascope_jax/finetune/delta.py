"""What a fine-tune changed: one file, and the model with it added.

A safetensors file of the differences, "layer_9/attn/q" and so on, whose
metadata says which base model they are from, how they came to be, and under
which licences. A base model's terms (Gemma's) hold for the sum.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import artifacts, gemma
from gemmascope_jax.gemma.weights import layout

FILE = "delta.safetensors"
FORMAT = 1
DTYPES = ("float32", "bfloat16")

_KEY = "gemmascope_jax"


def write(
  path: str | os.PathLike,
  lm: gemma.Gemma,
  blocks: Mapping[str, Any],
  about: Mapping[str, Any],
  dtype: str = "bfloat16",
) -> None:
  """Writes the difference between trained blocks and the model's own.

  Args:
    path: of the file.
    lm: the base model, in float32.
    blocks: {"layer_9": ...}, float32, see `tuning.tune`.
    about: JSON-ready, kept with it: recipe, texts, licences, token counts. Its
      "name" is what the sum is called: "our short chat fine-tune".
    dtype: on disk. In bfloat16 a difference is off by up to 1 part in 256 of
      itself, and half as large.

  Raises:
    ValueError: an unknown dtype, a block that the model lacks, or a number that
      is not finite.
    OutOfDiskError: no room; nothing was written.
  """
  from safetensors import numpy as safetensors

  if dtype not in DTYPES:
    raise ValueError(f"dtype is {dtype!r}; expected {' or '.join(DTYPES)}")
  base = dict(layout.flatten(lm.params))
  tensors = {}
  for name, value in sorted(layout.flatten(blocks)):
    if name not in base:
      raise ValueError(f"parameter {name}: {lm.label} has none of that name")
    difference = np.asarray(value) - np.asarray(base[name])
    if not np.isfinite(difference).all():
      raise ValueError(f"parameter {name} has become infinite or NaN")
    tensors[name] = difference.astype(jnp.dtype(dtype))
  described = {
    "format": FORMAT,
    "model": lm.config.name,
    "base": lm.label,
    "base_weights_hash": lm.weights_hash,
    "delta_hash": _hash(tensors),
    "code": artifacts.code_version(),
    **about,
  }
  metadata = {_KEY: artifacts.canonical_json(described)}
  artifacts.write_bytes(path, safetensors.save(tensors, metadata))


def describe(path: str | os.PathLike) -> dict[str, Any]:
  """What a delta says of itself: see `write`.

  Args:
    path: the file, or the folder that it is in.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is no delta, or of another format.
  """
  return _open(path)[0]


def apply(lm: gemma.Gemma, path: str | os.PathLike) -> gemma.Gemma:
  """The base model with a fine-tune added.

  Its `weights_hash` follows from the base's and the delta's; its label says
  that it is ours. Stores and releases made with it are its own.

  Args:
    lm: the base model, in any dtype and on any devices; layers that were not
      loaded are left out.
    path: the file, or the folder that it is in.

  Raises:
    FileNotFoundError: there is no delta.
    ValueError: it is of another base model, or damaged.
  """
  about, tensors = _open(path)
  if about["base_weights_hash"] != lm.weights_hash:
    raise ValueError(
      f"{path} is a fine-tune of {about['base']} with weights"
      f" {about['base_weights_hash'][:16]}..., not of {lm.label} with"
      f" {lm.weights_hash[:16]}...: load that model"
    )
  if about["delta_hash"] != _hash(tensors):
    raise ValueError(f"{path} is damaged: its content is not what was written")
  params = jax.tree.map(lambda leaf: leaf, lm.params)  # new dicts
  leaves = dict(layout.flatten(params))
  for name, difference in tensors.items():
    *parents, leaf = name.split("/")
    if parents[0] not in params:
      continue  # a layer that was not loaded
    if name not in leaves or leaves[name].shape != difference.shape:
      raise ValueError(
        f"{path}: parameter {name} of shape {difference.shape} does not fit"
        f" {lm.label}"
      )
    node = params
    for parent in parents:
      node = node[parent]
    node[leaf] = _sum(leaves[name], difference)
  identity = {"base": lm.weights_hash, "delta": about["delta_hash"]}
  whole = hashlib.sha256(artifacts.canonical_json(identity).encode())
  return dataclasses.replace(
    lm,
    params=params,
    weights_hash=whole.hexdigest(),
    label=f"{lm.label} + {about['name']}",
  )


def _sum(value: Any, difference: np.ndarray) -> jax.Array:
  """Added in float32, where the value is and in its dtype."""
  exact = np.asarray(value).astype(np.float32) + difference.astype(np.float32)
  exact = exact.astype(value.dtype)
  if isinstance(value, jax.Array):
    return jax.device_put(exact, value.sharding)
  return jnp.asarray(exact)


def _open(path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Description and tensors."""
  from safetensors import SafetensorError, safe_open

  path = pathlib.Path(path)
  path = path / FILE if path.is_dir() else path
  if not path.is_file():
    raise FileNotFoundError(
      f"no fine-tune at {path}: run `python -m experiments.finetune`, or give"
      f" the folder that holds its {FILE}"
    )
  try:
    with safe_open(path, framework="np") as file:
      about = json.loads((file.metadata() or {})[_KEY])
      tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
  except (SafetensorError, KeyError, ValueError) as error:
    raise ValueError(
      f"{path} is no fine-tune of ours, or damaged ({error})"
    ) from error
  if about.get("format") != FORMAT:
    raise ValueError(
      f"{path} has format {about.get('format')}; this version reads {FORMAT}"
    )
  return about, tensors


def _hash(tensors: Mapping[str, np.ndarray]) -> str:
  """Hex SHA-256 of names, dtypes, shapes and values."""
  names = sorted(tensors)
  # As plain integers, since bfloat16 has no string of its own in NumPy.
  words = {2: np.uint16, 4: np.uint32}
  bits = [tensors[name].view(words[tensors[name].itemsize]) for name in names]
  digest = hashlib.sha256("\n".join(names).encode())
  digest.update(artifacts.sha256_arrays(bits).encode())
  return digest.hexdigest()
