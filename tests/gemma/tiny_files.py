"""Tiny models on disk, written by code that shares nothing with the readers."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.gemma import GemmaConfig

VOCAB = 320

# All sizes differ, so that no transposition goes unseen.
CONFIG = GemmaConfig(
  name="gemma3_text",
  vocab_size=VOCAB,
  width=64,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=10,
  mlp_width=96,
  query_pre_attn_scalar=10,
  layer_pattern=("local", "global"),
  window=5,
  qk_norm=True,
  rope_base_global=1_000_000.0,
  context=32,
)


def random_params(config: GemmaConfig = CONFIG) -> dict[str, Any]:
  """float32 NumPy parameters; norm scales are not zero either."""
  shapes = jax.eval_shape(lambda: gemma.init(config, jax.random.key(0)))
  rng = np.random.default_rng(3)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes
  )


def hf_fields(config: GemmaConfig = CONFIG) -> dict[str, Any]:
  """What `config.json` says of the tiny Gemma 3."""
  kinds = {"local": "sliding_attention", "global": "full_attention"}
  return {
    "model_type": "gemma3_text",
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.mlp_width,
    "query_pre_attn_scalar": config.query_pre_attn_scalar,
    "sliding_window": config.window,
    "layer_types": [
      kinds[config.layer_pattern[i % 2]] for i in range(config.num_layers)
    ],
    "max_position_embeddings": config.context,
    "bos_token_id": 2,
  }


def hf_tensors(params: dict[str, Any]) -> dict[str, np.ndarray]:
  """Hugging Face's names and [out, in] matrices of our parameters."""
  tensors = {
    "model.embed_tokens.weight": params["embedder"]["embedding"],
    "model.norm.weight": params["final_norm"]["scale"],
  }
  for i in range(sum(key.startswith("layer_") for key in params)):
    layer, at = params[f"layer_{i}"], f"model.layers.{i}."
    width = layer["mlp"]["gate"].shape[0]
    for name in "qkv":
      tensors[f"{at}self_attn.{name}_proj.weight"] = (
        layer["attn"][name].reshape(width, -1).T
      )
    tensors[f"{at}self_attn.o_proj.weight"] = (
      layer["attn"]["o"].reshape(-1, width).T
    )
    for name in ("q_norm", "k_norm"):
      if name in layer["attn"]:
        tensors[f"{at}self_attn.{name}.weight"] = layer["attn"][name]["scale"]
    for name in ("gate", "up", "down"):
      tensors[f"{at}mlp.{name}_proj.weight"] = layer["mlp"][name].T
    for ours, theirs in (
      ("pre_attention_norm", "input_layernorm"),
      ("post_attention_norm", "post_attention_layernorm"),
      ("pre_mlp_norm", "pre_feedforward_layernorm"),
      ("post_mlp_norm", "post_feedforward_layernorm"),
    ):
      tensors[f"{at}{theirs}.weight"] = layer[ours]["scale"]
  return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


_GGUF = {
  "embed_tokens": "token_embd",
  "norm": "output_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "post_attention_norm",
  "pre_feedforward_layernorm": "ffn_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str) -> str:
  """llama.cpp's name of a tensor that Hugging Face calls `name`."""
  name = name.removeprefix("model.").removesuffix(".weight")
  if not name.startswith("layers."):
    return f"{_GGUF[name]}.weight"
  _, layer, name = name.split(".", 2)
  return f"blk.{layer}.{_GGUF[name]}.weight"


def write_tokenizer(
  folder: pathlib.Path, vocab: int = VOCAB, chat: bool = False
) -> None:
  """A `tokenizer.json` of single words; with a chat's, these are the last."""
  import tokenizers

  words = ["<pad>", "<eos>", "<bos>", "<unk>"]
  words += [f"w{i}" for i in range(len(words), vocab)]
  special = words[:4]
  if chat:
    words[-4:] = ["user", "model", "<start_of_turn>", "<end_of_turn>"]
    special += words[-2:]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token="<unk>"
    )
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(special)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))


def write_hf(
  folder: pathlib.Path,
  tensors: dict[str, np.ndarray],
  fields: dict[str, Any] | None = None,
  shards: int = 1,
) -> pathlib.Path:
  """A folder as `save_pretrained` writes it; layer i lies in shard i + 1."""
  from safetensors.numpy import save_file

  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(fields or hf_fields()))
  if shards == 1:
    save_file(tensors, folder / "model.safetensors")
    return folder
  where = {}
  for name in tensors:
    layer = int(name.split("layers.")[1][0]) if "layers" in name else 0
    where[name] = f"model-{layer + 1:05d}-of-{shards:05d}.safetensors"
  for file in set(where.values()):
    part = {name: x for name, x in tensors.items() if where[name] == file}
    save_file(part, folder / file)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": where})
  )
  return folder


def assert_params(ours: Any, expected: Any) -> None:
  """Same tree, same bits."""
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, ours, expected)
