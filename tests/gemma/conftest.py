"""The oracle: Hugging Face's models, tiny and random, with all sites read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemmascope_jax.gemma import GemmaConfig

_COMMON = {
  "vocab_size": 61,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "query_pre_attn_scalar": 13,
  "sliding_window": 5,
  "pad_token_id": 0,
}

# Small soft-caps, so that they bite; windows shorter than the sequences.
_CASES = {
  "gemma2": {
    "model_type": "gemma2",
    "num_hidden_layers": 4,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
  },
  "gemma2_no_softcaps": {
    "model_type": "gemma2",
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "sliding_window": 1,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
  },
  "gemma2_one_kv_head": {
    "model_type": "gemma2",
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": None,
    "rms_norm_eps": 1e-2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
  },
  "gemma3": {
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "rope_parameters": {
      "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
      "full_attention": {
        "rope_type": "linear",
        "factor": 8.0,
        "rope_theta": 1_000_000.0,
      },
    },
  },
  "gemma3_one_kv_head": {
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "sliding_window": 3,
    "layer_types": [
      "full_attention",
      "sliding_attention",
      "sliding_attention",
    ],
    "rope_parameters": {
      "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
      "full_attention": {"rope_type": "default", "rope_theta": 400.0},
    },
  },
}


@dataclasses.dataclass(frozen=True)
class Oracle:
  """One Hugging Face model beside our config and parameters.

  Attributes:
    hf_config: its config as a `config.json` would hold it.
    config: ours.
    params: ours, float32 numpy.
    run: (tokens [S, T], mask [S, T] | None) -> (logits, {site: activation}).
    generate: (tokens [S, T], mask [S, T], N) -> its likeliest N more, [S, N].
  """

  hf_config: dict[str, Any]
  config: GemmaConfig
  params: dict[str, Any]
  run: Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]
  generate: Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@pytest.fixture(scope="session", params=list(_CASES))
def oracle(request) -> Oracle:
  """Each of the tiny models in turn."""
  return _oracle(_CASES[request.param])


def _oracle(case: dict[str, Any]) -> Oracle:
  import torch
  import transformers

  fields = _COMMON | case
  if fields["model_type"] == "gemma2":
    hf_config = transformers.Gemma2Config(**fields)
    cls = transformers.Gemma2ForCausalLM
  else:
    hf_config = transformers.Gemma3TextConfig(**fields)
    cls = transformers.Gemma3ForCausalLM
  model = cls._from_config(
    hf_config, attn_implementation="eager", dtype=torch.float32
  ).eval()
  generator = torch.Generator().manual_seed(7)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      # Norm scales too: zeros would hide a forgotten or doubled gain.
      size = 1.0 if "embed" in name else 0.3
      weight.normal_(0.0, size, generator=generator)
  return Oracle(
    hf_config=hf_config.to_dict(),
    config=GemmaConfig.from_hf(hf_config.to_dict(), name="tiny"),
    params=_params(model),
    run=lambda tokens, mask=None: _run(model, tokens, mask),
    generate=lambda tokens, mask, new: _generate(model, tokens, mask, new),
  )


def _params(model) -> dict[str, Any]:
  """Our tree of a Hugging Face model's weights ([out, in] there)."""
  config = model.config
  scale = lambda norm: {"scale": norm.weight.detach().numpy()}

  def heads(linear):
    weight = linear.weight.detach().numpy()
    return weight.T.reshape(config.hidden_size, -1, config.head_dim)

  def layer(block):
    attn, mlp = block.self_attn, block.mlp
    out = attn.o_proj.weight.detach().numpy().T
    tree = {
      "q": heads(attn.q_proj),
      "k": heads(attn.k_proj),
      "v": heads(attn.v_proj),
      "o": out.reshape(-1, config.head_dim, config.hidden_size),
    }
    if hasattr(attn, "q_norm"):
      tree["q_norm"] = scale(attn.q_norm)
      tree["k_norm"] = scale(attn.k_norm)
    return {
      "attn": tree,
      "mlp": {
        "gate": mlp.gate_proj.weight.detach().numpy().T,
        "up": mlp.up_proj.weight.detach().numpy().T,
        "down": mlp.down_proj.weight.detach().numpy().T,
      },
      "pre_attention_norm": scale(block.input_layernorm),
      "post_attention_norm": scale(block.post_attention_layernorm),
      "pre_mlp_norm": scale(block.pre_feedforward_layernorm),
      "post_mlp_norm": scale(block.post_feedforward_layernorm),
    }

  inner = model.model
  return {
    "embedder": {"embedding": inner.embed_tokens.weight.detach().numpy()},
    "final_norm": scale(inner.norm),
  } | {f"layer_{i}": layer(block) for i, block in enumerate(inner.layers)}


def _run(model, tokens, mask):
  """Logits and every site, read by hooks at the modules of the paper's 3.2."""
  import torch

  acts, handles = {}, []

  def keep(name, value):
    acts[name] = value.detach().numpy().copy()

  def hook(module, function):
    handles.append(module.register_forward_hook(function))

  for i, block in enumerate(model.model.layers):
    hook(block, lambda m, a, out, i=i: keep(f"res.{i}", out))
    hook(
      block.post_feedforward_layernorm,
      lambda m, a, out, i=i: keep(f"mlp.{i}", out),
    )
    hook(block.self_attn.o_proj, lambda m, a, out, i=i: keep(f"att.{i}", a[0]))
    hook(
      block.pre_feedforward_layernorm,
      lambda m, a, out, i=i: keep(f"mlp_in.{i}", m._norm(a[0].float())),
    )
  arguments = {"input_ids": torch.tensor(np.asarray(tokens))}
  if mask is not None:
    mask = torch.tensor(np.asarray(mask)).long()
    # As `generate` makes them from the attention mask.
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    arguments |= {"attention_mask": mask, "position_ids": positions}
  with torch.no_grad():
    logits = model(**arguments, use_cache=False).logits.numpy()
  for handle in handles:
    handle.remove()
  return logits, acts


def _generate(model, tokens, mask, new):
  """Greedy decoding that never stops."""
  import torch

  found = model.generate(
    torch.tensor(np.asarray(tokens)),
    attention_mask=torch.tensor(np.asarray(mask).copy()).long(),
    max_new_tokens=new,
    do_sample=False,
    eos_token_id=None,
  )
  return found[:, tokens.shape[1] :].numpy()
