"""Google's own checkpoints of Gemma: Orbax, flat or nested.

    transformer/layer_0/attn/q_einsum/w         [N, D, H]
                             kv_einsum/w        [2, K, D, H]
                             qkv_einsum/w       [3, N, D, H], where N = K
                             attn_vec_einsum/w  [N, H, D]
                             _query_norm/scale  [H]       (Gemma 3)
                        mlp/gating_einsum       [2, D, F] or [2, F, D]
                            linear              [F, D]
                        pre_ffw_norm/scale ...  [D]

The prefix may be missing, keys joined or nested, and a last `/w` there or not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from gemmascope_jax import cache, checkpoints
from gemmascope_jax.gemma import tokenizer
from gemmascope_jax.gemma.config import PRESETS, GemmaConfig
from gemmascope_jax.gemma.weights import layout
from gemmascope_jax.gemma.weights.errors import (
  TokenizerNotFoundError,
  WeightsFormatError,
)
from gemmascope_jax.gemma.weights.source import Weights

_EMBEDDING = "embedder/input_embedding"

# Leaf -> (name, letters of each axis, leading index).
_PLACES = {
  layout.EMBEDDING: (_EMBEDDING, ("V", "D"), ()),
  "final_norm/scale": ("final_norm/scale", ("D",), ()),
  "attn/q": ("attn/q_einsum", ("N", "D", "H"), ()),
  "attn/k": ("attn/kv_einsum", ("K", "D", "H"), (0,)),
  "attn/v": ("attn/kv_einsum", ("K", "D", "H"), (1,)),
  "attn/o": ("attn/attn_vec_einsum", ("N", "H", "D"), ()),
  "attn/q_norm/scale": ("attn/_query_norm/scale", ("H",), ()),
  "attn/k_norm/scale": ("attn/_key_norm/scale", ("H",), ()),
  "mlp/gate": ("mlp/gating_einsum", ("D", "F"), (0,)),
  "mlp/up": ("mlp/gating_einsum", ("D", "F"), (1,)),
  "mlp/down": ("mlp/linear", ("F", "D"), ()),
  "pre_attention_norm/scale": ("pre_attention_norm/scale", ("D",), ()),
  "post_attention_norm/scale": ("post_attention_norm/scale", ("D",), ()),
  "pre_mlp_norm/scale": ("pre_ffw_norm/scale", ("D",), ()),
  "post_mlp_norm/scale": ("post_ffw_norm/scale", ("D",), ()),
}
_FUSED = {
  leaf: ("attn/qkv_einsum", (heads, "D", "H"), (number,))
  for number, (leaf, heads) in enumerate(
    (("attn/q", "N"), ("attn/k", "K"), ("attn/v", "K"))
  )
}


def open_folder(
  folder: str | os.PathLike, config: GemmaConfig | None = None
) -> Weights:
  """Opens an Orbax checkpoint in the layout of Google's gemma library.

  Args:
    folder: of the checkpoint. The tokenizer (`tokenizer.model`) is looked for
      in it and in the folder that it lies in.
    config: the architecture; None: the preset with the same shapes.

  Raises:
    WeightsFormatError: the folder is damaged or holds another model, its
      shapes are no preset's, or the order of the MLP's axes is ambiguous.
  """
  folder = pathlib.Path(folder)
  try:
    shapes = checkpoints.tree_shapes(folder)
  except ValueError as error:
    raise WeightsFormatError(str(error)) from error
  known = {_plain(key): (key, leaf) for key, leaf in layout.flatten(shapes)}
  if _EMBEDDING not in known:
    raise WeightsFormatError(
      f"{folder}: no {_EMBEDDING}; it is no checkpoint of Google's gemma"
      f" library. It holds: {', '.join(list(known)[:5])} ..."
    )
  if config is None:
    config = _recognise(folder, {key: leaf for key, (_, leaf) in known.items()})
  gating = known.get("layer_0/mlp/gating_einsum")
  swapped = gating is not None and _swapped(folder, gating[1], config)

  @functools.lru_cache(maxsize=1)
  def part(group: str) -> Mapping[str, np.ndarray]:
    """All arrays of one layer, or all that are of none, read at once."""
    wanted = {
      key for plain, (key, _) in known.items() if _group(plain) == group
    }
    try:
      tree = checkpoints.load_raw_tree(folder, keep=wanted.__contains__)
    except ValueError as error:
      raise WeightsFormatError(str(error)) from error
    return {_plain(key): array for key, array in layout.flatten(tree)}

  def find(path: str) -> layout.Stored:
    layer, leaf = layout.split(path)
    prefix = "" if layer is None else f"layer_{layer}/"
    name, axes, select = _PLACES[leaf]
    if leaf in _FUSED and f"{prefix}attn/qkv_einsum" in known:
      name, axes, select = _FUSED[leaf]
    if name == "mlp/gating_einsum" and swapped:
      axes = axes[::-1]
    name = prefix + name
    if name not in known:
      raise WeightsFormatError(
        f"{folder}: array {name} is missing ({path} of {config.name})"
      )
    return layout.Stored(
      f"array {name} in {folder}",
      _Lazy(name, known[name][1], part),
      axes,
      select,
    )

  return Weights(
    config=config,
    label=config.name,
    find=find,
    hash=lambda: _hash(folder),
    tokenizer=lambda: _tokenizer(folder),
    bos_id=2,
  )


class _Lazy:
  """An array that is read, with its layer, when it is indexed."""

  def __init__(self, name: str, like: jax.ShapeDtypeStruct, part):
    self.shape = tuple(like.shape)
    self._name = name
    self._part = part

  def __getitem__(self, index) -> np.ndarray:
    return self._part(_group(self._name))[self._name][index]


def _plain(key: str) -> str:
  """A key without what varies between the published files."""
  for prefix in ("params/", "transformer/"):
    key = key.removeprefix(prefix)
  return key.removesuffix("/w")


def _group(plain: str) -> str:
  """ "layer_3" for its arrays, "" for embedding and final norm."""
  if plain.startswith("layer_"):
    return plain.split("/", 1)[0]
  return "" if plain in (_EMBEDDING, "final_norm/scale") else "other"


def _recognise(
  folder: pathlib.Path, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> GemmaConfig:
  """The preset whose shapes these are."""
  rows, width = shapes[_EMBEDDING].shape
  layers = {_group(key) for key in shapes if key.startswith("layer_")}
  query = shapes.get("layer_0/attn/q_einsum")
  keys = shapes.get("layer_0/attn/kv_einsum")
  if query is None or keys is None:
    fused = shapes.get("layer_0/attn/qkv_einsum")
    found = None if fused is None else (*fused.shape[1:2] * 2, fused.shape[-1])
  else:
    found = (query.shape[0], keys.shape[1], query.shape[-1])
  linear = shapes.get("layer_0/mlp/linear")
  norm = "layer_0/attn/_query_norm/scale" in shapes
  for config in PRESETS.values():
    if (
      (config.width, config.num_layers) == (width, len(layers))
      and (config.num_heads, config.num_kv_heads, config.head_dim) == found
      and linear is not None
      and linear.shape[0] == config.mlp_width
      and config.qk_norm == norm
      and rows >= config.vocab_size
    ):
      return config
  raise WeightsFormatError(
    f"{folder}: no preset has its shapes ({len(layers)} layers, embedding"
    f" {(rows, width)}, query heads, key heads and head width {found}, MLP"
    f" {None if linear is None else linear.shape}); pass the architecture with"
    " gs.gemma.load(..., config=GemmaConfig(...))"
  )


def _swapped(
  folder: pathlib.Path, gating: jax.ShapeDtypeStruct, config: GemmaConfig
) -> bool:
  """Whether the gating einsum is stored as [2, F, D], as for 9B and 27B."""
  shape = tuple(gating.shape[1:])
  straight = (config.width, config.mlp_width)
  if config.width == config.mlp_width:
    raise WeightsFormatError(
      f"{folder}: mlp/gating_einsum of shape {tuple(gating.shape)} could be"
      f" either way round, since {config.name} has width = mlp_width ="
      f" {config.width}; convert the checkpoint to Hugging Face's format"
    )
  return shape == straight[::-1]


def _hash(folder: pathlib.Path) -> str:
  """One hash of the names and hashes of the checkpoint's files."""
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  hashes = {
    path.relative_to(folder).as_posix(): cache.file_hash(path)
    for path in files
    if not path.name.startswith("tokenizer")
  }
  return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _tokenizer(folder: pathlib.Path) -> tokenizer.Tokenizer:
  for place in (folder, folder.resolve().parent):
    try:
      return tokenizer.open_tokenizer(place)
    except TokenizerNotFoundError:
      continue
  raise TokenizerNotFoundError(
    f"no tokenizer: neither {folder} nor the folder around it holds"
    " tokenizer.model or tokenizer.json; pass one with gs.gemma.load(...,"
    " tokenizer=PATH)"
  )
