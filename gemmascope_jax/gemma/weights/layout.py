"""The leaves of the params tree, and how they are cut out of stored tensors.

Every weight format is a table from leaf to stored tensor and to the order of
the letters in it; reading, checking, transposing, casting and sharding happen
here, once. `("NH", "D")` is a matrix whose rows are heads times head width.

Letters: V vocabulary, D width, N heads, K key-value heads, H head width, F
hidden width of the MLP.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
  Mesh,
  NamedSharding,
  Sharding,
  SingleDeviceSharding,
)

from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.weights.errors import WeightsFormatError
from gemmascope_jax.parallel import rules

EMBEDDING = "embedder/embedding"

_TOP = {EMBEDDING: "VD", "final_norm/scale": "D"}
_LAYER = {
  "attn/q": "DNH",
  "attn/k": "DKH",
  "attn/v": "DKH",
  "attn/o": "NHD",
  "mlp/gate": "DF",
  "mlp/up": "DF",
  "mlp/down": "FD",
  "pre_attention_norm/scale": "D",
  "post_attention_norm/scale": "D",
  "pre_mlp_norm/scale": "D",
  "post_mlp_norm/scale": "D",
}
_QK_NORM = {"attn/q_norm/scale": "H", "attn/k_norm/scale": "H"}

# The order of letters in the matrices of PyTorch, [out, in], and of GGUF.
TORCH_AXES: Mapping[str, tuple[str, ...]] = {
  EMBEDDING: ("V", "D"),
  "attn/q": ("NH", "D"),
  "attn/k": ("KH", "D"),
  "attn/v": ("KH", "D"),
  "attn/o": ("D", "NH"),
  "mlp/gate": ("F", "D"),
  "mlp/up": ("F", "D"),
  "mlp/down": ("D", "F"),
  "attn/q_norm/scale": ("H",),
  "attn/k_norm/scale": ("H",),
  **{leaf: ("D",) for leaf in (*_TOP, *_LAYER) if leaf.endswith("norm/scale")},
}


class Tensor(Protocol):
  """A stored tensor, read piece by piece."""

  shape: tuple[int, ...]

  def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
    """The piece at `index`, which has an entry for every axis."""


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where a leaf lies.

  Attributes:
    name: of the tensor and its file, for messages.
    tensor: the tensor.
    axes: for each of its axes (after `select`), the letters folded into it.
    select: leading index, where one tensor holds several leaves.
    gain: the tensor holds the gain 1 + scale of a norm, not the scale.
  """

  name: str
  tensor: Tensor
  axes: tuple[str, ...]
  select: tuple[int, ...] = ()
  gain: bool = False


def letters(config: GemmaConfig) -> dict[str, int]:
  """The size that each letter stands for."""
  return {
    "V": config.vocab_size,
    "D": config.width,
    "N": config.num_heads,
    "K": config.num_kv_heads,
    "H": config.head_dim,
    "F": config.mlp_width,
  }


def leaves(config: GemmaConfig, num_layers: int) -> dict[str, str]:
  """The letters of every leaf: {"layer_0/attn/q": "DNH", ...}."""
  layer = _LAYER | (_QK_NORM if config.qk_norm else {})
  return _TOP | {
    f"layer_{i}/{leaf}": axes
    for i in range(num_layers)
    for leaf, axes in layer.items()
  }


def split(path: str) -> tuple[int | None, str]:
  """Layer and leaf: "layer_3/attn/q" -> (3, "attn/q"); None if no layer's."""
  if not path.startswith("layer_"):
    return None, path
  layer, leaf = path.split("/", 1)
  return int(layer.removeprefix("layer_")), leaf


def read_params(
  config: GemmaConfig,
  find: Callable[[str], Stored],
  *,
  num_layers: int,
  dtype: Any,
  mesh: Mesh | None,
  partition: rules.Rules = rules.LM_RULES,
) -> dict[str, Any]:
  """Reads the params tree, a part at a time, to the devices that hold it.

  Of several processes each reads the parts of its own devices. The host holds
  one part at a time, and no part is read twice.

  Args:
    config: the architecture.
    find: from a leaf's path to where it lies.
    num_layers: layers 0..num_layers-1 are read, the embedding and final norm.
    dtype: of all parameters.
    mesh: the devices; None: the default one.
    partition: how the parameters are split over them.

  Returns:
    Nested dicts of arrays.

  Raises:
    WeightsFormatError: a tensor is missing, misshapen or not of numbers. All
      shapes are checked before the first tensor is read.
  """
  sizes = letters(config)
  wanted = leaves(config, num_layers)
  stored = {path: find(path) for path in wanted}
  for path, place in stored.items():
    _check(config, path, place, sizes)
  tree: dict[str, Any] = {}
  for path, axes in wanted.items():
    shape = tuple(sizes[letter] for letter in axes)
    place = stored[path]
    array = _assemble(
      shape,
      _sharding(path, shape, mesh, partition),
      lambda index, place=place, axes=axes: _read(
        place, axes, sizes, index, dtype
      ),
    )
    _set(tree, path, array)
  return tree


def shapes(
  config: GemmaConfig,
  *,
  num_layers: int,
  dtype: Any,
  mesh: Mesh | None = None,
  partition: rules.Rules = rules.LM_RULES,
) -> dict[str, Any]:
  """What `read_params` would give, as `jax.ShapeDtypeStruct`s.

  For compiling without weights. Args are those of `read_params`.
  """
  sizes = letters(config)
  tree: dict[str, Any] = {}
  for path, axes in leaves(config, num_layers).items():
    shape = tuple(sizes[letter] for letter in axes)
    sharding = None
    if mesh is not None:
      sharding = _sharding(path, shape, mesh, partition)
    leaf = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
    _set(tree, path, leaf)
  return tree


def _set(tree: dict[str, Any], path: str, leaf: Any) -> None:
  *parents, name = path.split("/")
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[name] = leaf


def _sharding(
  path: str,
  shape: tuple[int, ...],
  mesh: Mesh | None,
  partition: rules.Rules,
) -> Sharding:
  if mesh is None:
    # Where new arrays land, `jax.default_device` included.
    return SingleDeviceSharding(jnp.zeros(()).device)
  return NamedSharding(mesh, rules.spec(path, shape, mesh, partition))


def _assemble(
  shape: tuple[int, ...],
  sharding: Sharding,
  read: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
  """An array of parts; each is read once, however many devices hold it."""
  holders: dict[tuple, list[jax.Device]] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    key = tuple(
      entry.indices(size) for entry, size in zip(index, shape, strict=True)
    )
    holders.setdefault(key, []).append(device)
  parts = []
  for key, devices in holders.items():
    block = read(tuple(slice(*entry) for entry in key))
    # Waits, so that the host need not hold the next part as well.
    parts += jax.block_until_ready(
      [jax.device_put(block, device) for device in devices]
    )
  return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _check(
  config: GemmaConfig, path: str, place: Stored, sizes: Mapping[str, int]
) -> None:
  """Checks a tensor's shape; the embedding may have padding rows."""
  found = tuple(place.tensor.shape)[len(place.select) :]
  expected = tuple(
    math.prod(sizes[letter] for letter in group) for group in place.axes
  )
  if found == expected:
    return
  padded = path == EMBEDDING and found[1:] == expected[1:]
  if padded and found[0] > expected[0]:
    return
  raise WeightsFormatError(
    f"{place.name}: shape {found}, expected"
    f" {'at least ' if padded else ''}{expected} for {path} of {config.name};"
    " the file is another model's, or its config is"
  )


def _read(
  place: Stored,
  axes: str,
  sizes: Mapping[str, int],
  index: tuple[slice, ...],
  dtype: Any,
) -> np.ndarray:
  """The part of a leaf that `index` names, as a NumPy array of `dtype`."""
  part = {
    letter: range(*entry.indices(sizes[letter]))
    for letter, entry in zip(axes, index, strict=True)
  }
  rows = tuple(_span(group, part, sizes) for group in place.axes)
  block = np.asarray(place.tensor[place.select + rows])
  if not jnp.issubdtype(block.dtype, jnp.floating):
    raise WeightsFormatError(
      f"{place.name}: holds {block.dtype}, expected floating-point numbers"
    )
  # Unfold the letters of each axis; all but the first are whole as yet.
  flat = "".join(place.axes)
  first = {group[0] for group in place.axes}
  block = block.reshape(
    [len(part[x]) if x in first else sizes[x] for x in flat]
  )
  block = block[
    tuple(
      slice(None) if x in first else slice(part[x].start, part[x].stop)
      for x in flat
    )
  ]
  if place.gain:
    block = block.astype(np.float32) - 1.0
  return block.transpose([flat.index(x) for x in axes]).astype(
    np.dtype(dtype), copy=False
  )


def _span(
  group: str, part: Mapping[str, range], sizes: Mapping[str, int]
) -> slice:
  """Rows of a stored axis that hold the wanted part of its first letter."""
  inner = math.prod(sizes[letter] for letter in group[1:])
  wanted = part[group[0]]
  return slice(wanted.start * inner, wanted.stop * inner)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
  """(path, leaf) of nested dicts, keys joined by slashes."""
  for key, value in tree.items():
    path = f"{prefix}{key}"
    if isinstance(value, Mapping):
      yield from flatten(value, f"{path}/")
    else:
      yield path, value
