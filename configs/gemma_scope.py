"""Gemma Scope's SAEs: Table 1 (arXiv 2408.05147), and a config for each entry.

configs/gemma2_2b.py, gemma2_9b.py, gemma2_27b.py and gemma2_9b_it.py choose by
site and width:

  --config=configs/gemma2_9b.py:res.20,131k
  --config=configs/gemma2_2b.py:transcoder.12,16k

and this lists what there is:

  python -m configs.gemma_scope

All else is configs/default.py, which is the paper's recipe. The paper sweeps
lambda for each entry and names only 6e-4 and 1e-3: the default's three values
stand in for a sweep that is not published; `experiments.calibrate` finds those
that give the L0s of the releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from configs import default
from gemmascope_jax.gemma.config import preset
from gemmascope_jax.releases.gemma_scope import width_name

_EVERY = "every layer"
_SITES = {"att": _EVERY, "mlp": _EVERY, "res": _EVERY}

# {model: {width: {kind of site: layers}}}: Table 1. "+ transcoders" is in the
# entry of 2B's width 2^14; "9B IT" of section 4.5 is its last block.
_TABLE = {
  "gemma-2-2b": {
    2**14: {**_SITES, "transcoder": _EVERY},
    2**15: {"res": (12,)},
    2**16: _SITES,
    2**17: {"res": (12,)},
    2**18: {"res": (12,)},
    2**19: {"res": (12,)},
    2**20: {"res": (5, 12, 19)},
  },
  "gemma-2-9b": {
    2**14: _SITES,
    2**15: {"res": (20,)},
    2**16: {"res": (20,)},
    2**17: _SITES,
    2**18: {"res": (20,)},
    2**19: {"res": (20,)},
    2**20: {"res": (9, 20, 31)},
  },
  "gemma-2-27b": {2**17: {"res": (10, 22, 34)}},
  "gemma-2-9b-it": {
    2**14: {"res": (9, 20, 31)},
    2**17: {"res": (9, 20, 31)},
  },
}


class Entry(NamedTuple):
  """One SAE, or transcoder, that was trained.

  Attributes:
    kind: "res", "mlp", "att", "transcoder", "skip_transcoder".
    layer: counted from 0.
    width: number of latents M.
    tokens: it was trained on, one row each.
  """

  kind: str
  layer: int
  width: int
  tokens: int

  @property
  def name(self) -> str:
    """As it is chosen: "res.20,131k"."""
    return f"{self.kind}.{self.layer},{width_name(self.width)}"

  @property
  def is_transcoder(self) -> bool:
    """Whether it reads another site than it reconstructs."""
    return self.kind.endswith("transcoder")

  @property
  def sites(self) -> tuple[str, ...]:
    """The site that it reads, and a transcoder's target."""
    if self.is_transcoder:
      return f"mlp_in.{self.layer}", f"mlp.{self.layer}"
    return (f"{self.kind}.{self.layer}",)


def tokens_of(width: int) -> int:
  """GS 3.1: 4B at width 2^14, 16B at 2^20, 8B between."""
  return {2**14: 4, 2**20: 16}.get(width, 8) * 10**9


def table_1(model: str) -> list[Entry]:
  """Every (site, layer, width, tokens) of one model."""
  every = range(preset(model).num_layers)
  return [
    Entry(kind, layer, width, tokens_of(width))
    for width, kinds in _TABLE[model].items()
    for kind, layers in kinds.items()
    for layer in (every if layers == _EVERY else layers)
  ]


def choose(entries: Sequence, which: str, model: str):
  """The entry of that name.

  Raises:
    ValueError: there is none; names the nearest ones.
  """
  found = {entry.name: entry for entry in entries}
  if which in found:
    return found[which]
  near = [name for name in found if name.split(",")[0] == which.split(",")[0]]
  near = near or sorted({name.split(".")[0] + "..." for name in found})
  raise ValueError(
    f"{model} has no {which!r} among what was trained; expected SITE,WIDTH, of"
    f" {' '.join(near)}. Take the nearest and override, as"
    " --config.recipe.width=32768"
  )


def config(model: str, which: str):
  """The config of one entry of Table 1."""
  entry = choose(table_1(model), which, model)
  config = default.get_config()
  config.workdir = f"runs/{model}/{which.replace(',', '_')}"
  config.update_from_flattened_dict(overrides(model, entry))
  config.harvest.sites = entry.sites  # GS 3.2
  return config


def overrides(model: str, entry: Entry) -> dict[str, Any]:
  """What an entry changes in configs/default.py, but for what it harvests."""
  found = {
    "lm.source": f"google/{model}",
    "data.chat": model.endswith("-it"),  # GS 4.5
    "harvest.rows": entry.tokens,  # GS Table 1
    "train.tokens": entry.tokens,
    "train.site": entry.sites[0],  # GS 3.2
    "recipe.width": entry.width,  # GS Table 1
  }
  if entry.is_transcoder:
    found |= {"train.target_site": entry.sites[1]} | AS_TRANSCODER
  return found


# What a transcoder's recipe changes (GS appendix B).
AS_TRANSCODER = {
  # W_enc does not start as the decoder's transpose; how, GS does not say.
  "recipe.encoder_init": "he_uniform",
  "recipe.pre_encoder_bias": False,
}


if __name__ == "__main__":
  for model in _TABLE:
    for entry in table_1(model):
      print(model, entry.name, f"{entry.tokens // 10**9}B tokens")
