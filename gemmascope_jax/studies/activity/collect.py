"""Everything that a dashboard needs to know of latents, in one pass.

Of M latents it keeps about M (300 + 16 (contexts + samples)) bytes, and the
(latent, token) pairs, see `tokens`: half a GiB for 2^20 latents and, by
default, half a GiB of pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.activity import entries as entries_
from gemmascope_jax.studies.activity import sample as sample_
from gemmascope_jax.studies.activity.examples import Random, Strongest
from gemmascope_jax.studies.activity.firing import Firing, Frequencies
from gemmascope_jax.studies.activity.tokens import TokenSums
from gemmascope_jax.studies.activity.values import Values


@dataclasses.dataclass(frozen=True, eq=False)
class LatentStatistics:
  """What one SAE's latents did; each part has a module of its own.

  Attributes:
    frequencies: how often they fired.
    values: how strongly.
    strongest: their strongest rows, one a window.
    random: rows on which they fire, a uniform sample.
    tokens: on which tokens; None if no vocabulary was given.
  """

  frequencies: Frequencies
  values: Values
  strongest: Strongest
  random: Random
  tokens: TokenSums | None


def collect(
  saes: Mapping[str, SAE],
  store,
  site: str,
  *,
  rows: int | None = None,
  contexts: int = 6,
  samples: int = 24,
  vocabulary: int | None = None,
  pairs: int = 1 << 25,
  block: int = sample_.BLOCK,
  progress: bool = True,
) -> dict[str, LatentStatistics]:
  """Looks at rows once, with all SAEs.

  Args:
    saes: SAEs of the site by name.
    store: activations with their tokens.
    site: where.
    rows: rows of the store, from its first; None: all.
    contexts: strongest rows to keep of each latent.
    samples: random rows to keep of each latent.
    vocabulary: V of the tokenizer; None: no sums by token.
    pairs: (latent, token) pairs to keep of each SAE.
    block: rows at a time; of no effect on the result.
    progress: show a progress bar.

  Returns:
    By the SAEs' names.

  Raises:
    ValueError: SAEs of another site or width, or numbers below 1.
  """
  sample = sample_.Sample.of(store, site, rows)
  sample.require_saes(saes)
  found = {}
  for name, sae in saes.items():
    tokens = vocabulary and TokenSums(sae.width, vocabulary, pairs)
    found[name] = (
      Firing(sae.width, sample),
      Values(sae.width),
      Strongest(sae.width, contexts),
      Random(sae.width, samples),
      tokens or None,
    )
  on_device = {name: entries_.on_device(sae) for name, sae in saes.items()}
  for each in sample.blocks("what latents do", block, progress):
    for name, (firing, values, strongest, random, tokens) in found.items():
      entries = entries_.active(on_device[name], each.x)
      firing.add(entries, each)
      values.add(entries)
      strongest.add(entries, each)
      random.add(entries, each)
      if tokens is not None:
        tokens.add(entries, each)
  return {
    name: LatentStatistics(firing.finish(), *others)
    for name, (firing, *others) in found.items()
  }
