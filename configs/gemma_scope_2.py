"""Gemma Scope 2's models of Gemma 3, as far as its report says how.

configs/gemma3_270m.py, _1b, _4b, _12b and _27b choose by site and width:

  --config=configs/gemma3_1b.py:res.13,65k
  --config=configs/gemma3_1b.py:skip_transcoder.13,16k
  --config=configs/gemma3_1b.py:crosscoder,65k

GS2 = the report, GS = Gemma Scope. The recipe is GS's except for a quadratic
penalty that holds L0 near a target (GS2 eq. 5), lambda warmed up over 50,000
steps, a penalty on latents that fire often, and Matryoshka training of SAEs
(GS2 3.3). What the report leaves open is chosen here:

  tokens         by width as in GS Table 1
  lambda         1e-2 of the penalty as `sae.families.sparsity` writes it. At
                 rest its slope, lambda (L0 - L0*) / L0*, is the price of a
                 latent that eq. 4 of GS calls lambda and sets near 6e-4 for an
                 L0 of 50: L0 ends 6% above its target, more at small targets
  frequency      coefficient 1e-3 at scale 0.1: a latent that fires on 10% of
                 the rows pays 2e-3 for each more, three times that price
  Matryoshka     nested dictionaries of M/64, M/16, M/4 latents, weighed equally
  transcoders    start and biases as GS's, but targets divided by their own C:
                 by the inputs', E||y||^2 is 2,800 after layer 5 of Gemma 3
                 270M, and no lambda is right at all layers

What differs from the releases: transcoders read the gain-free MLP input, as
GS's do (the gain can be folded into W_enc); crosscoders are the plain kind,
whose latents read and write all their sites, and begin at random with the final
target (the releases' are weakly causal, begin as SAEs of one layer, and lower
the target over 50,000 steps); cross-layer transcoders are missing, and so are
instruction-tuned models, which the report trains on real answers.
"""

from __future__ import annotations

from typing import NamedTuple

from configs import default, gemma_scope
from gemmascope_jax.gemma.config import preset
from gemmascope_jax.releases.gemma_scope import width_name

# GS2: at 25, 50, 65 and 85% of the depth.
DEEP_DIVES = {
  "gemma-3-270m": (5, 9, 12, 15),
  "gemma-3-1b": (7, 13, 17, 22),
  "gemma-3-4b": (9, 17, 22, 29),
  "gemma-3-12b": (12, 24, 31, 41),
  "gemma-3-27b": (16, 31, 40, 53),
}
_KINDS = ("res", "mlp", "att", "transcoder", "skip_transcoder")
# GS2 Table 1 calls 65k, 262k and 524k 64k, 256k and 512k.
_EVERY_LAYER = (2**14, 2**18)
_DEEP_DIVE = (2**14, 2**16, 2**18)
_RESIDUAL_ONLY = (2**20,)
_CROSSCODER = (2**16, 2**18, 2**19, 2**20)
_CROSSCODER_L0S = (50, 150)  # GS2 Table 1
# First and last L0 target along the depth, fitted to the releases' names.
_SMALL, _MEDIUM, _BIG, _BIG_EVERY = (10, 20), (30, 60), (60, 150), (60, 120)


class Crosscoder(NamedTuple):
  """A crosscoder of a model's four deep-dive layers; see `Entry`."""

  sites: tuple[str, ...]
  width: int
  tokens: int

  @property
  def name(self) -> str:
    """As it is chosen: "crosscoder,65k"."""
    return f"crosscoder,{width_name(self.width)}"


def table_1(model: str) -> list[gemma_scope.Entry | Crosscoder]:
  """What was trained on one model, without cross-layer transcoders."""
  found = []
  for layer in range(preset(model).num_layers):
    for kind in _KINDS:
      widths = _EVERY_LAYER
      if layer in DEEP_DIVES[model]:
        widths = _DEEP_DIVE + (_RESIDUAL_ONLY if kind == "res" else ())
      found += [
        gemma_scope.Entry(kind, layer, width, gemma_scope.tokens_of(width))
        for width in widths
      ]
  sites = tuple(f"res.{layer}" for layer in DEEP_DIVES[model])
  return found + [
    Crosscoder(sites, width, gemma_scope.tokens_of(width))
    for width in _CROSSCODER
  ]


def target_l0s(model: str, layer: int) -> tuple[int, ...]:
  """The targets at a layer: they grow over the first third of the depth."""
  share = min(1.0, 3 * layer / preset(model).num_layers)
  sets = (_SMALL, _BIG_EVERY)
  if layer in DEEP_DIVES[model]:
    sets = (_SMALL, _MEDIUM, _BIG)
  return tuple(int(low + (high - low) * share) for low, high in sets)


def config(model: str, which: str):
  """The config of one entry."""
  entry = gemma_scope.choose(table_1(model), which, model)
  config = default.get_config()
  config.workdir = f"runs/{model}/{which.replace(',', '_')}"
  config.lm.source = model
  config.harvest.sites = entry.sites
  config.harvest.rows = config.train.tokens = entry.tokens
  config.train.site = entry.sites[0]
  config.recipe.width = entry.width  # GS2 Table 1
  config.train.target_l0_coefficient = 1e-2  # chosen
  config.recipe.sparsity_warmup_steps = 50_000  # GS2
  config.recipe.frequency_coefficient = 1e-3  # chosen
  config.recipe.frequency_scale = 0.1  # GS2: the 10% of its strict version
  if isinstance(entry, Crosscoder):
    config.train.site = "+".join(entry.sites)
    config.train.target_l0s = _CROSSCODER_L0S
    return config
  config.train.target_l0s = target_l0s(model, entry.layer)
  if entry.is_transcoder:
    config.train.target_site = entry.sites[1]
    config.update_from_flattened_dict(gemma_scope.AS_TRANSCODER)
    config.recipe.normalise = "each"  # chosen
    config.recipe.skip = entry.kind == "skip_transcoder"
  else:
    config.recipe.prefixes = tuple(entry.width // n for n in (64, 16, 4))
  return config
