"""What distinguishes one Gemma from another: `GemmaConfig` and the presets.

Gemma 2 as in its report (paper notes, section 10); Gemma 3's text models by
the same fields: QK-norm instead of soft-caps, five local layers to a global
one, a RoPE base for each kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

LOCAL = "local"
GLOBAL = "global"


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """Architecture of one model; hashable, so that it can be a static argument.

  Attributes:
    name: what errors and artefacts call the model, such as "gemma-2-2b".
    vocab_size: V, rows of the embedding.
    width: D, of the residual stream.
    num_layers: L.
    num_heads: N, query heads.
    num_kv_heads: K, key-value heads; query heads j*N/K.. share head j.
    head_dim: H.
    mlp_width: F, the hidden width of each branch of the gated MLP.
    query_pre_attn_scalar: queries are scaled by this to the power -0.5.
    layer_pattern: kinds of attention ("local" or "global"), repeated over the
      layers from layer 0.
    window: a local layer's query i sees keys j with 0 <= i - j < window.
    attn_softcap: attention scores become cap * tanh(score / cap); None: off.
    final_softcap: the same for the logits.
    qk_norm: RMS-normalise queries and keys, each with its own scale, before
      RoPE.
    rope_base_local: RoPE base of local layers.
    rope_base_global: RoPE base of global layers.
    rope_factor_global: positions of global layers are divided by this.
    norm_eps: added to the mean square in every RMSNorm.
    context: longest sequence that the model was made for, in tokens.
  """

  name: str
  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  query_pre_attn_scalar: float
  layer_pattern: tuple[str, ...]
  window: int
  attn_softcap: float | None = None
  final_softcap: float | None = None
  qk_norm: bool = False
  rope_base_local: float = 10_000.0
  rope_base_global: float = 10_000.0
  rope_factor_global: float = 1.0
  norm_eps: float = 1e-6
  context: int = 8192

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"{self.name}: num_heads {self.num_heads} is not a multiple of"
        f" num_kv_heads {self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(
        f"{self.name}: head_dim {self.head_dim} is odd; RoPE needs pairs"
      )
    if not self.layer_pattern or set(self.layer_pattern) - {LOCAL, GLOBAL}:
      raise ValueError(
        f"{self.name}: layer_pattern {self.layer_pattern} must hold"
        f" {LOCAL!r} and {GLOBAL!r} only, at least one of them"
      )

  def is_local(self, layer: int) -> bool:
    """Whether a layer's attention is limited to the sliding window."""
    return self.layer_pattern[layer % len(self.layer_pattern)] == LOCAL

  @classmethod
  def from_hf(
    cls, hf: Mapping[str, Any], name: str | None = None
  ) -> GemmaConfig:
    """Reads a Hugging Face `config.json`; see `config_hf.read`."""
    from gemmascope_jax.gemma import config_hf

    return config_hf.read(hf, name)


def _gemma2(name: str, **fields: Any) -> GemmaConfig:
  return GemmaConfig(
    name=name,
    vocab_size=256_000,
    layer_pattern=(LOCAL, GLOBAL),
    window=4096,
    attn_softcap=50.0,
    final_softcap=30.0,
    context=8192,
    **fields,
  )


def _gemma3(name: str, **fields: Any) -> GemmaConfig:
  return GemmaConfig(
    name=name,
    # Hugging Face's files of 4b and larger carry 64 rows more, made up for
    # image tokens; `from_hf` reads them as the file says.
    vocab_size=262_144,
    layer_pattern=(LOCAL,) * 5 + (GLOBAL,),
    qk_norm=True,
    rope_base_global=1_000_000.0,
    **fields,
  )


_BASE = (
  _gemma2(
    "gemma-2-2b",
    width=2304,
    num_layers=26,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    mlp_width=9216,
    query_pre_attn_scalar=256,
  ),
  _gemma2(
    "gemma-2-9b",
    width=3584,
    num_layers=42,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    mlp_width=14336,
    query_pre_attn_scalar=256,
  ),
  _gemma2(
    "gemma-2-27b",
    width=4608,
    num_layers=46,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    mlp_width=36864,
    query_pre_attn_scalar=144,  # D / N, not H
  ),
  _gemma3(
    "gemma-3-270m",
    width=640,
    num_layers=18,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    mlp_width=2048,
    query_pre_attn_scalar=256,
    window=512,
    context=32_768,
  ),
  _gemma3(
    "gemma-3-1b",
    width=1152,
    num_layers=26,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    mlp_width=6912,
    query_pre_attn_scalar=256,
    window=512,
    context=32_768,
  ),
  _gemma3(
    "gemma-3-4b",
    width=2560,
    num_layers=34,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    mlp_width=10_240,
    query_pre_attn_scalar=256,
    window=1024,
    rope_factor_global=8.0,
    context=131_072,
  ),
  _gemma3(
    "gemma-3-12b",
    width=3840,
    num_layers=48,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    mlp_width=15_360,
    query_pre_attn_scalar=256,
    window=1024,
    rope_factor_global=8.0,
    context=131_072,
  ),
  _gemma3(
    "gemma-3-27b",
    width=5376,
    num_layers=62,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    mlp_width=21_504,
    query_pre_attn_scalar=168,  # D / N, not H
    window=1024,
    rope_factor_global=8.0,
    context=131_072,
  ),
)

# Instruction-tuned models have the architecture of their base models.
PRESETS: dict[str, GemmaConfig] = {
  config.name: config
  for base in _BASE
  for config in (base, dataclasses.replace(base, name=f"{base.name}-it"))
}


def preset(name: str) -> GemmaConfig:
  """The architecture of a published model.

  Args:
    name: a key of `PRESETS`, such as "gemma-2-2b" or "gemma-3-270m-it".

  Raises:
    ValueError: no such preset.
  """
  if name not in PRESETS:
    raise ValueError(
      f"model {name!r}: no such preset; there are {', '.join(PRESETS)}"
    )
  return PRESETS[name]
