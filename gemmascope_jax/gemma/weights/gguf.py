"""GGUF files: dequantised tensors, architecture, tokenizer.

Blocks are dequantised by the `gguf` package, in pieces that stay in the
processor's cache: 1.0 second for the 270M model where whole tensors take 4.8,
and little memory for intermediates. So the result is not kept on disk.

Norms in these files hold the gain, 1 + scale.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import numpy as np

from gemmascope_jax import artifacts, cache
from gemmascope_jax.gemma import sentencepiece_model
from gemmascope_jax.gemma.config import PRESETS, GemmaConfig
from gemmascope_jax.gemma.tokenizer import Tokenizer
from gemmascope_jax.gemma.weights import layout
from gemmascope_jax.gemma.weights.errors import (
  TokenizerNotFoundError,
  WeightsFormatError,
)
from gemmascope_jax.gemma.weights.gguf_header import Header, read_header
from gemmascope_jax.gemma.weights.source import Weights

_NAMES = {
  layout.EMBEDDING: "token_embd",
  "final_norm/scale": "output_norm",
  "attn/q": "attn_q",
  "attn/k": "attn_k",
  "attn/v": "attn_v",
  "attn/o": "attn_output",
  "attn/q_norm/scale": "attn_q_norm",
  "attn/k_norm/scale": "attn_k_norm",
  "mlp/gate": "ffn_gate",
  "mlp/up": "ffn_up",
  "mlp/down": "ffn_down",
  "pre_attention_norm/scale": "attn_norm",
  "post_attention_norm/scale": "post_attention_norm",
  "pre_mlp_norm/scale": "ffn_norm",
  "post_mlp_norm/scale": "post_ffw_norm",
}

# About so many numbers are dequantised at a time: 1 MiB of float32.
_PIECE = 1 << 18


class QuantisedTensor:
  """A matrix or vector of a GGUF file; indexing dequantises the rows asked for.

  Args:
    header: of the file.
    name: of the tensor.
    data: the file's bytes.

  Raises:
    WeightsFormatError: the file ends before the tensor does, or its type is
      unknown.
  """

  def __init__(self, header: Header, name: str, data: np.ndarray):
    gguf = _gguf()
    info = header.tensors[name]
    self.shape = info.shape
    try:
      self._kind = gguf.GGMLQuantizationType(info.kind)
    except ValueError as error:
      raise WeightsFormatError(
        f"tensor {name} in {header.path}: GGML type {info.kind} is unknown to"
        " the installed gguf package; update it"
      ) from error
    block, size = gguf.GGML_QUANT_SIZES[self._kind]
    nbytes = math.prod(info.shape) // block * size
    start = header.start + info.offset
    if info.shape[-1] % block or start + nbytes > data.size:
      raise WeightsFormatError(
        f"{header.path} is cut short: tensor {name} ends at byte"
        f" {start + nbytes:,}, the file at {data.size:,}; download it again"
      )
    # Rows of bytes; a vector is one row of a matrix.
    rows = math.prod(info.shape[:-1])
    self._rows = data[start : start + nbytes].reshape(rows, -1)

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    """Dequantised float32 at `index`."""
    dequantize = _gguf().quants.dequantize
    if len(self.shape) == 1:
      return dequantize(self._rows, self._kind)[0][index]
    rows = self._rows[index[0]]
    width = self.shape[-1]
    out = _aligned((rows.shape[0], width))
    step = max(1, _PIECE // width)
    for at in range(0, rows.shape[0], step):
      # As one row: the package works on 16 rows at a time, too few of ours.
      piece = rows[at : at + step].reshape(1, -1)
      out[at : at + step] = dequantize(piece, self._kind).reshape(-1, width)
    return out[:, index[1]]


def _aligned(shape: tuple[int, int]) -> np.ndarray:
  """float32 at a multiple of 64 bytes, which JAX adopts without a copy."""
  nbytes = 4 * math.prod(shape)
  raw = np.empty(nbytes + 64, np.uint8)
  skip = -raw.ctypes.data % 64
  return raw[skip : skip + nbytes].view(np.float32).reshape(shape)


def _gguf():
  try:
    import gguf
    import gguf.quants
  except ImportError as error:
    raise ImportError(
      "GGUF files are dequantised by the package gguf, which is not installed:"
      ' pip install "gemmascope_jax[demo]"'
    ) from error
  return gguf


def open_file(path: str | os.PathLike) -> Weights:
  """Opens a GGUF file of a Gemma 2 or Gemma 3 text model.

  Raises:
    WeightsFormatError: the file is damaged, or of another architecture.
  """
  header = read_header(path)
  config = _config(header)
  # As a plain array, whose views are cheaper than those of a memmap.
  data = np.memmap(header.path, np.uint8, mode="r").view(np.ndarray)

  def find(path: str) -> layout.Stored:
    layer, leaf = layout.split(path)
    prefix = "" if layer is None else f"blk.{layer}."
    name = f"{prefix}{_NAMES[leaf]}.weight"
    if name not in header.tensors:
      raise WeightsFormatError(
        f"{header.path}: tensor {name} is missing ({path} of {config.name})"
      )
    return layout.Stored(
      f"tensor {name} in {header.path}",
      QuantisedTensor(header, name, data),
      layout.TORCH_AXES[leaf],
      gain=leaf.endswith("norm/scale"),
    )

  return Weights(
    config=config,
    label=f"{config.name} ({_precision(header)})",
    find=find,
    hash=lambda: cache.file_hash(header.path),
    tokenizer=lambda: _tokenizer(header),
    bos_id=header.metadata.get("tokenizer.ggml.bos_token_id"),
  )


def _precision(header: Header) -> str:
  """Such as "Q4_K_M, dequantised"."""
  gguf = _gguf()
  number = header.metadata.get("general.file_type")
  try:
    name = gguf.LlamaFileType(number).name
  except ValueError:
    return "GGUF, dequantised"
  name = name.removeprefix("MOSTLY_").removeprefix("ALL_")
  return name if name in ("F32", "F16", "BF16") else f"{name}, dequantised"


def _config(header: Header) -> GemmaConfig:
  """The architecture, by way of the fields that Hugging Face gives it."""
  family = header.metadata.get("general.architecture")
  kinds = {"gemma2": "gemma2", "gemma3": "gemma3_text"}
  if family not in kinds:
    raise WeightsFormatError(
      f"{header.path}: general.architecture is {family!r}, expected"
      f" {' or '.join(kinds)}"
    )
  embedding = header.tensors.get("token_embd.weight")
  if embedding is None:
    raise WeightsFormatError(
      f"{header.path}: tensor token_embd.weight is missing"
    )

  def get(key: str, default: Any = None):
    value = header.metadata.get(f"{family}.{key}", default)
    if value is None:
      raise WeightsFormatError(
        f"{header.path}: metadata {family}.{key} is missing"
      )
    # A float32 such as 1e-6 as it was meant.
    return float(str(np.float32(value))) if isinstance(value, float) else value

  head_dim = get("attention.key_length")
  fields = {
    "model_type": kinds[family],
    "vocab_size": embedding.shape[0],
    "hidden_size": get("embedding_length"),
    "num_hidden_layers": get("block_count"),
    "num_attention_heads": get("attention.head_count"),
    "num_key_value_heads": get("attention.head_count_kv"),
    "head_dim": head_dim,
    "intermediate_size": get("feed_forward_length"),
    "sliding_window": get("attention.sliding_window"),
    "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
    "max_position_embeddings": get("context_length"),
    # Not in the file: the published models whose scale is not that of the head
    # width are known by their size.
    "query_pre_attn_scalar": next(
      (
        known.query_pre_attn_scalar
        for known in PRESETS.values()
        if (known.num_layers, known.width, known.head_dim)
        == (get("block_count"), get("embedding_length"), head_dim)
      ),
      head_dim,
    ),
  }
  if family == "gemma2":
    fields["attn_logit_softcapping"] = get("attn_logit_softcapping", 50.0)
    fields["final_logit_softcapping"] = get("final_logit_softcapping", 30.0)
    fields["rope_theta"] = get("rope.freq_base", 10_000.0)
  else:
    fields["rope_theta"] = get("rope.freq_base", 1_000_000.0)
    if get("rope.scaling.type", "none") != "none":
      fields["rope_scaling"] = {
        "rope_type": get("rope.scaling.type"),
        "factor": get("rope.scaling.factor"),
      }
  config = GemmaConfig.from_hf(fields)
  tuned = header.metadata.get("general.finetune") == "it"
  if tuned and f"{config.name}-it" in PRESETS:
    return dataclasses.replace(config, name=f"{config.name}-it")
  return config


def _tokenizer(header: Header) -> Tokenizer:
  """Rebuilds the tokenizer, or opens the one that was rebuilt before."""
  prefix = "tokenizer.ggml."
  get = header.metadata.get
  if get(prefix + "model") != "llama" or get(prefix + "scores") is None:
    raise TokenizerNotFoundError(
      f"{header.path}: its tokenizer is {get(prefix + 'model')!r}, expected"
      " 'llama' (SentencePiece) with scores; pass one with"
      " gs.gemma.load(..., tokenizer=PATH)"
    )
  vocabulary = {
    "pieces": get(prefix + "tokens"),
    "scores": get(prefix + "scores"),
    "types": get(prefix + "token_type"),
  }
  ids = {
    "pad_id": get(prefix + "padding_token_id", 0),
    "eos_id": get(prefix + "eos_token_id", 1),
    "bos_id": get(prefix + "bos_token_id", 2),
    "unk_id": get(prefix + "unknown_token_id", 3),
    "space_prefix": bool(get(prefix + "add_space_prefix", False)),
  }
  source = cache.file_hash(header.path)
  path = cache.folder("tokenizers") / f"{source}.{_BUILD}.model"
  if not path.is_file():
    with artifacts.atomic_write(path) as file:
      file.write(sentencepiece_model.rebuild(**vocabulary, **ids))
  return sentencepiece_model.SentencePieceTokenizer(path)


# Counted up when `sentencepiece_model.rebuild` changes what it makes.
_BUILD = 1
