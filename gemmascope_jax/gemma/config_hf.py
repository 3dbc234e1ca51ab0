"""Reads Hugging Face's `config.json` of a Gemma 2 or Gemma 3 text model.

Files on the Hub leave out what equals the defaults of the transformers class,
so those defaults stand here; both spellings of the RoPE fields are read. What
our forward pass does not compute is refused, not ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemmascope_jax.gemma.config import GLOBAL, LOCAL, PRESETS, GemmaConfig

_DEFAULTS = {
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "rms_norm_eps": 1e-6,
}
_GEMMA2 = _DEFAULTS | {
  "vocab_size": 256_000,
  "max_position_embeddings": 8192,
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
}
_GEMMA3 = _DEFAULTS | {
  "vocab_size": 262_208,
  "max_position_embeddings": 131_072,
  "attn_logit_softcapping": None,
  "final_logit_softcapping": None,
}
# Fields that change the computation, with the one value that is computed.
_REQUIRED = {
  "hidden_activation": "gelu_pytorch_tanh",
  "attention_bias": False,
  "tie_word_embeddings": True,
  "use_bidirectional_attention": False,
}
_KINDS = {"sliding_attention": LOCAL, "full_attention": GLOBAL}


def read(hf: Mapping[str, Any], name: str | None = None) -> GemmaConfig:
  """Our config from a Hugging Face one.

  Args:
    hf: the decoded `config.json` of a gemma2, gemma3_text or gemma3 model; of
      the last, the text part is read.
    name: what to call the model; by default that of the preset with the same
      architecture, or else the model type.

  Returns:
    The config.

  Raises:
    ValueError: another kind of model, or a field with a value that our forward
      pass does not compute.
  """
  kind = hf.get("model_type")
  if kind == "gemma3":
    return read({"model_type": "gemma3_text"} | dict(hf["text_config"]), name)
  if kind not in ("gemma2", "gemma3_text"):
    raise ValueError(
      f"model_type {kind!r} in the Hugging Face config: expected 'gemma2',"
      " 'gemma3_text' or 'gemma3'"
    )
  for key, value in _REQUIRED.items():
    if hf.get(key) not in (None, value):
      raise ValueError(
        f"{key} = {hf[key]!r} in the Hugging Face config: only {value!r} is"
        " supported"
      )
  third = kind == "gemma3_text"
  get = ((_GEMMA3 if third else _GEMMA2) | dict(hf)).__getitem__
  (local, _), (far, factor) = _ropes(hf, third)
  config = GemmaConfig(
    name=name or kind,
    vocab_size=get("vocab_size"),
    width=get("hidden_size"),
    num_layers=get("num_hidden_layers"),
    num_heads=get("num_attention_heads"),
    num_kv_heads=get("num_key_value_heads"),
    head_dim=get("head_dim"),
    mlp_width=get("intermediate_size"),
    query_pre_attn_scalar=get("query_pre_attn_scalar"),
    layer_pattern=_pattern(hf, get("num_hidden_layers"), third),
    window=get("sliding_window"),
    attn_softcap=get("attn_logit_softcapping"),
    final_softcap=get("final_logit_softcapping"),
    qk_norm=third,
    rope_base_local=local,
    rope_base_global=far,
    rope_factor_global=factor,
    norm_eps=get("rms_norm_eps"),
    context=get("max_position_embeddings"),
  )
  return config if name else _named(config)


def _named(config: GemmaConfig) -> GemmaConfig:
  """The config under its preset's name, if it is one of them."""
  for known in PRESETS.values():
    if config == dataclasses.replace(
      known, name=config.name, vocab_size=config.vocab_size
    ):
      return dataclasses.replace(config, name=known.name)
  return config


def _pattern(
  hf: Mapping[str, Any], num_layers: int, third: bool
) -> tuple[str, ...]:
  """The shortest pattern that repeats to the file's layer kinds."""
  period = hf.get("sliding_window_pattern") or (6 if third else 2)
  kinds: Sequence[str] = hf.get("layer_types") or [
    "sliding_attention" if (i + 1) % period else "full_attention"
    for i in range(num_layers)
  ]
  unknown = set(kinds) - set(_KINDS)
  if unknown or len(kinds) != num_layers:
    raise ValueError(
      f"layer_types in the Hugging Face config: expected {num_layers} of"
      f" {sorted(_KINDS)}, found {len(kinds)}: {sorted(set(kinds))}"
    )
  for length in range(1, num_layers + 1):
    if all(kinds[i] == kinds[i % length] for i in range(num_layers)):
      return tuple(_KINDS[kind] for kind in kinds[:length])
  raise AssertionError("the whole list repeats once")


def _ropes(
  hf: Mapping[str, Any], third: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
  """(base, factor) of local and of global layers."""
  new = hf.get("rope_parameters")
  if not third:
    old = dict(hf.get("rope_scaling") or {})
    if new is not None:
      old |= new
    both = _rope(old, float(hf.get("rope_theta", 10_000.0)))
    if both[1] != 1.0:
      raise ValueError(
        f"RoPE factor {both[1]} in the Hugging Face config: Gemma 2 has none"
      )
    return both, both
  new = new or {}
  local = _rope(
    new.get("sliding_attention") or {},
    float(hf.get("rope_local_base_freq", 10_000.0)),
  )
  if local[1] != 1.0:
    raise ValueError(
      f"RoPE factor {local[1]} of local layers in the Hugging Face config:"
      " only global layers can have one"
    )
  far = _rope(
    dict(hf.get("rope_scaling") or {}) | (new.get("full_attention") or {}),
    float(hf.get("rope_theta", 1_000_000.0)),
  )
  return local, far


def _rope(fields: Mapping[str, Any], base: float) -> tuple[float, float]:
  """(base, factor) of one kind of layer."""
  kind = fields.get("rope_type", fields.get("type", "default"))
  if kind not in ("default", "linear"):
    raise ValueError(
      f"rope_type {kind!r} in the Hugging Face config: expected 'default' or"
      " 'linear'"
    )
  factor = float(fields.get("factor", 1.0)) if kind == "linear" else 1.0
  return float(fields.get("rope_theta", base)), factor
