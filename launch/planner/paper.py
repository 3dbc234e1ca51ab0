"""The planner's arithmetic against what Gemma Scope says (arXiv 2408.05147, v2).

Section 3.3: "storing activations" and "hardware". The accounting there is 12
operations a weight and row, two of ours more: the gradient of the input, which
no trainer needs.
"""

from __future__ import annotations

from typing import NamedTuple

from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.config import preset
from launch.planner import accelerators, costs

_TOKENS = 8 * 10**9
_SHARD = 1 << 20
_ROWS, _LATENTS, _STEP_S, _CHIPS, _MFU = 4096, 2**17, 0.045, 8, 0.508


class Check(NamedTuple):
  """One figure.

  Attributes:
    what: of the paper.
    paper: its value.
    ours: computed.
    unit: of both.
    within: the ratio ours / paper has to be within this of 1.
    note: why they differ.
  """

  what: str
  paper: float
  ours: float
  unit: str
  within: float
  note: str

  @property
  def agrees(self) -> bool:
    """Whether it is as close as it should be."""
    return abs(self.ours / self.paper - 1) <= self.within


def checks() -> list[Check]:
  """All figures that the paper gives."""
  width = preset("gemma-2-9b").width
  site = costs.store_bytes(_TOKENS, width, "float32", _SHARD)
  every = sum(
    costs.store_bytes(_TOKENS, sites.site_width(lm, name), "float32", _SHARD)
    for lm in (preset("gemma-2-2b"), preset("gemma-2-9b"))
    for layer in range(lm.num_layers)
    for name in (f"res.{layer}", f"mlp.{layer}", f"att.{layer}")
  )
  batch = _ROWS * width * 4
  flops = 12 * _ROWS * width * _LATENTS
  peak = accelerators.find("tpu_v3").peak("bfloat16") * _CHIPS
  return [
    Check(
      "activations of one site of 9B, 8B tokens",
      100,
      site / 2**40,
      "TiB",
      0.1,
      "rounded in the paper; ours with a check of 8 bytes a row",
    ),
    Check(
      "activations of all sites and layers of 2B and 9B",
      17,
      every / 2**50,
      "PiB",
      0.1,
      "the paper counts some sites with fewer tokens",
    ),
    Check(
      "reading for one SAE of 9B, at 45 ms a step",
      1,
      batch / _STEP_S / 2**30,
      "GiB/s",
      0.25,
      'the paper says "more than"',
    ),
    Check(
      "one step: 131k latents, 9B, batch 4,096, 8 TPUv3 at 50.8 % of the peak",
      1000 * _STEP_S,
      1000 * flops / (peak * _MFU),
      "ms",
      0.05,
      "12 operations a weight and row",
    ),
    Check(
      "share of the peak at 45 ms",
      100 * _MFU,
      100 * flops / _STEP_S / peak,
      "%",
      0.05,
      "of 123 TFLOP/s a chip in bfloat16",
    ),
  ]
