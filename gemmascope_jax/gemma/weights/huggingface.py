"""Hugging Face folders: `config.json` and safetensors, read lazily."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from gemmascope_jax import artifacts, cache
from gemmascope_jax.gemma import tokenizer
from gemmascope_jax.gemma.config import PRESETS, GemmaConfig
from gemmascope_jax.gemma.weights import layout, safetensors_file
from gemmascope_jax.gemma.weights.errors import (
  WeightsFormatError,
  WeightsNotFoundError,
)
from gemmascope_jax.gemma.weights.source import Weights

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_NAMES = {
  layout.EMBEDDING: "embed_tokens",
  "final_norm/scale": "norm",
  "attn/q": "self_attn.q_proj",
  "attn/k": "self_attn.k_proj",
  "attn/v": "self_attn.v_proj",
  "attn/o": "self_attn.o_proj",
  "attn/q_norm/scale": "self_attn.q_norm",
  "attn/k_norm/scale": "self_attn.k_norm",
  "mlp/gate": "mlp.gate_proj",
  "mlp/up": "mlp.up_proj",
  "mlp/down": "mlp.down_proj",
  "pre_attention_norm/scale": "input_layernorm",
  "post_attention_norm/scale": "post_attention_layernorm",
  "pre_mlp_norm/scale": "pre_feedforward_layernorm",
  "post_mlp_norm/scale": "post_feedforward_layernorm",
}

# The language model's own files, and where multimodal ones keep it.
_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")


def tensor_name(path: str, prefix: str = "") -> str:
  """A leaf's name in the files: "layer_3/attn/q" -> "layers.3.self_attn..."."""
  layer, leaf = layout.split(path)
  middle = "" if layer is None else f"layers.{layer}."
  return f"{prefix}{middle}{_NAMES[leaf]}.weight"


def find_prefix(names: Iterable[str]) -> str | None:
  """What stands before the names of the language model's tensors, if any."""
  names = set(names)
  for prefix in _PREFIXES:
    if tensor_name(layout.EMBEDDING, prefix) in names:
      return prefix
  return None


def read_config(folder: pathlib.Path, name: str) -> GemmaConfig:
  """The architecture that the folder's `config.json` describes.

  Args:
    folder: with `config.json`.
    name: of the source, which tells an instruction-tuned model by its ending.

  Raises:
    ValueError: another kind of model; names the file.
  """
  path = folder / CONFIG
  fields = artifacts.read_json(path)
  try:
    config = GemmaConfig.from_hf(fields)
  except (ValueError, KeyError) as error:
    raise ValueError(f"{path}: {error}") from error
  if name.endswith("-it") and f"{config.name}-it" in PRESETS:
    return dataclasses.replace(config, name=f"{config.name}-it")
  return config


def read_index(path: pathlib.Path) -> dict[str, str]:
  """From tensor to file, as a `model.safetensors.index.json` says."""
  try:
    return dict(artifacts.read_json(path)["weight_map"])
  except (KeyError, TypeError) as error:
    raise WeightsFormatError(
      f"{path}: no weight_map; the file is damaged"
    ) from error


def open_folder(
  folder: str | os.PathLike,
  name: str | None = None,
  hash_files: Callable[[Sequence[str]], Sequence[str]] | None = None,
) -> Weights:
  """Opens a folder as `save_pretrained` writes it and the Hub keeps it.

  Args:
    folder: with `config.json`, safetensors (and their index if there are
      several) and the tokenizer.
    name: of the source; by default the folder's.
    hash_files: from file names to their SHA-256s; by default the files are
      read for it, and all of them must be there.

  Raises:
    WeightsNotFoundError: there are no safetensors.
    WeightsFormatError: a file is damaged.
    ValueError: the config is of another kind of model.
  """
  folder = pathlib.Path(folder)
  name = name or folder.resolve().name
  config = read_config(folder, name)
  if (folder / INDEX).is_file():
    where = read_index(folder / INDEX)
  else:
    where = _headers(folder)
  prefix = find_prefix(where)
  if prefix is None:
    raise WeightsFormatError(
      f"{folder}: no tensor embed_tokens.weight; the files are not those of a"
      " Gemma language model"
    )
  files_open: dict[str, safetensors_file.File] = {}

  def opened(file: str) -> safetensors_file.File:
    if file not in files_open:
      files_open[file] = _open(folder / file)
    return files_open[file]

  def find(path: str) -> layout.Stored:
    tensor = tensor_name(path, prefix)
    file = where.get(tensor)
    if file is None:
      raise WeightsFormatError(
        f"{folder}: tensor {tensor} is missing ({path} of {config.name})"
      )
    handle = opened(file)
    if tensor not in handle.names():
      raise WeightsFormatError(
        f"{folder / file}: tensor {tensor} is missing, though {INDEX} says"
        " that it is there"
      )
    return layout.Stored(
      f"tensor {tensor} in {folder / file}",
      handle.tensor(tensor),
      layout.TORCH_AXES[layout.split(path)[1]],
    )

  files = sorted(set(where.values()))
  return Weights(
    config=config,
    label=config.name if config.name in PRESETS else name,
    find=find,
    hash=lambda: _joined(
      (hash_files or (lambda names: _hashes(folder, names)))(files)
    ),
    tokenizer=lambda: tokenizer.open_tokenizer(folder),
    bos_id=_bos(artifacts.read_json(folder / CONFIG)),
    bytes_read=lambda: sum(file.bytes_read for file in files_open.values()),
  )


def _bos(fields: Mapping) -> int | None:
  text = fields.get("text_config") or {}
  return text.get("bos_token_id", fields.get("bos_token_id"))


def _headers(folder: pathlib.Path) -> dict[str, str]:
  """From tensor to file for a folder without an index."""
  single = folder / SINGLE
  files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
  if not files:
    torch = sorted(path.name for path in folder.glob("*.bin"))
    raise WeightsNotFoundError(
      f"weights not found: {folder} has a {CONFIG} but no *.safetensors"
      + (
        f" (only {', '.join(torch)}; convert them with transformers'"
        " save_pretrained)"
        if torch
        else "; download them, or pass another source"
      )
    )
  return {name: path.name for path in files for name in _open(path).names()}


def _open(path: pathlib.Path) -> safetensors_file.File:
  if not path.is_file():
    raise WeightsNotFoundError(
      f"weights not found: {path} is named by {INDEX} but does not exist;"
      " download it into that folder"
    )
  return safetensors_file.File(path)


def _hashes(folder: pathlib.Path, files: Sequence[str]) -> list[str]:
  missing = [file for file in files if not (folder / file).is_file()]
  if missing:
    raise WeightsNotFoundError(
      f"weights not found: {', '.join(missing)} named by {INDEX} but not in"
      f" {folder}; download the rest, without which the model can't be"
      " identified"
    )
  return [blob_hash(folder / file) for file in files]


def blob_hash(path: pathlib.Path) -> str:
  """SHA-256 of a file; the Hub's cache names large files by it."""
  name = path.resolve().name
  if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", name):
    return name
  return cache.file_hash(path)


def _joined(hashes: Sequence[str]) -> str:
  """One hash for several files; for one file, its own."""
  if len(hashes) == 1:
    return hashes[0]
  return hashlib.sha256(json.dumps(list(hashes)).encode()).hexdigest()
