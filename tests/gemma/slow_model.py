"""Gemma 2 in float64 numpy, one sum at a time, for finite differences."""

import numpy as np


def forward(config, params, tokens, edits=None):
  """Logits before the final soft-cap, and the sites' activations.

  Args:
    config: a `GemmaConfig` of the second generation.
    params: its parameters.
    tokens: int [S, T], without padding.
    edits: site -> function of its activation.

  Returns:
    float64 [S, T, V], and {"res.0": [S, T, D], ...} after the edits.
  """
  edits, acts = edits or {}, {}

  def visit(site, value):
    acts[site] = edits.get(site, lambda x: x)(value)
    return acts[site]

  f = lambda x: np.asarray(x, np.float64)
  norm = lambda x, p: (
    x
    / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + config.norm_eps)
    * (1 + f(p["scale"]))
  )
  x = f(params["embedder"]["embedding"])[tokens] * config.width**0.5
  for layer in range(config.num_layers):
    p = params[f"layer_{layer}"]
    y = norm(x, p["pre_attention_norm"])
    z = _attention(config, layer, {k: f(v) for k, v in p["attn"].items()}, y)
    z = visit(f"att.{layer}", z)
    y = z @ f(p["attn"]["o"]).reshape(-1, config.width)
    x = x + norm(y, p["post_attention_norm"])
    y = norm(x, p["pre_mlp_norm"])
    gate, up = y @ f(p["mlp"]["gate"]), y @ f(p["mlp"]["up"])
    y = _gelu(gate) * up @ f(p["mlp"]["down"])
    x = x + visit(f"mlp.{layer}", norm(y, p["post_mlp_norm"]))
    x = visit(f"res.{layer}", x)
  hidden = norm(x, params["final_norm"])
  return hidden @ f(params["embedder"]["embedding"]).T, acts


def soft_cap(values, cap):
  """cap tanh(values / cap); the values themselves without a cap."""
  return values if cap is None else cap * np.tanh(values / cap)


def _attention(config, layer, p, y):
  q, k, v = (np.einsum("std,dnh->snth", y, p[name]) for name in "qkv")
  group = config.num_heads // config.num_kv_heads
  k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
  q, k = _rotate(config, q), _rotate(config, k)
  scores = q @ k.swapaxes(2, 3) * config.query_pre_attn_scalar**-0.5
  scores = soft_cap(scores, config.attn_softcap)
  places = np.arange(y.shape[1])
  behind = places[:, None] - places[None]
  seen = behind >= 0
  if config.is_local(layer):
    seen &= behind < config.window
  weights = np.exp(np.where(seen, scores, -np.inf))
  weights /= weights.sum(axis=-1, keepdims=True)
  return (weights @ v).transpose(0, 2, 1, 3).reshape(*y.shape[:2], -1)


def _rotate(config, x):
  half = config.head_dim // 2
  frequency = config.rope_base_local ** -(np.arange(half) / half)
  angle = np.arange(x.shape[2])[:, None] * frequency
  one, two = x[..., :half], x[..., half:]
  cos, sin = np.cos(angle), np.sin(angle)
  return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


def _gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
