"""A first look at an SAE that somebody made: its L0 and FVU on some text.

    lm = gs.gemma.load("google/gemma-2-2b")
    sae = gs.sae.load("google/gemma-scope-2b-pt-res/layer_20/width_16k/canonical")
    print(gs.studies.look(lm, sae))

The language model runs no further than the SAE's site, and nothing is spliced:
`fidelity` has the losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.text import documents
from gemmascope_jax.data.tokens import packing
from gemmascope_jax.releases import gain, names
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies import reconstruction
from gemmascope_jax.studies.estimate import Estimate
from gemmascope_jax.studies.subjects import subject

SOURCES = ("wikipedia_en", "sotu", "dialogue")
_PIECE = 2_000  # characters of a document at a time, so that many take turns


@dataclasses.dataclass(frozen=True)
class Look:
  """What an SAE does on some text.

  Attributes:
    name: of the SAE, or its sites.
    l0: active latents a token.
    fvu: fraction of variance unexplained.
    silent: share of the latents that fire nowhere in this text.
    tokens: that count.
  """

  name: str
  l0: Estimate
  fvu: Estimate
  silent: Estimate
  tokens: int

  def __str__(self) -> str:
    return (
      f"{self.name}: L0 {self.l0}, FVU {self.fvu}, silent {self.silent}, on"
      f" {self.tokens:,} tokens"
    )


def look(
  lm,
  sae: SAE,
  text: Iterable[str] | None = None,
  *,
  sequences: int = 16,
  window: int = 512,
  batch: int = 4,
) -> Look:
  """Measures L0 and FVU.

  Args:
    lm: the `Gemma` that the SAE is of; `num_layers` may stop after its site.
    sae: an SAE or a transcoder; one that reads the norm's gain too
      (`mlp_in_gain.L`) is converted with this model's.
    text: documents; None: held-out packaged ones (`SOURCES`).
    sequences: so many at most.
    window: tokens of each, BOS included.
    batch: sequences a pass.

  Returns:
    Means over the tokens that count, with standard errors over sequences.

  Raises:
    ValueError: an SAE that does not say its site, is a crosscoder, or is of
      another model or width; no text, or a string in place of documents.
    FileNotFoundError: packaged text is not installed; says how to.
  """
  if isinstance(text, str):
    raise ValueError(
      f"text is one string, {text[:40]!r}: expected documents, as in"
      f" look(lm, sae, [{text[:40]!r}])"
    )
  name = sae.config.details().get("about", {}).get("released_as")
  if (sae.config.site or "").startswith(f"{names.GAINED}."):
    sae = gain.without(sae, lm)
  one = subject(sae, name or "the SAE")
  policy = sae.config.token_policy or TokenPolicy.of(lm.tokenizer)
  one.check(lm, policy)
  if text is None:
    text = documents.mix(SOURCES, "held_out", piece_characters=_PIECE)
  made = packing.pack_until(
    text,
    lm.tokenizer,
    window,
    policy=policy,
    rows=None,
    windows=sequences,
    packed=True,
    chat=None,
  )
  reading = reconstruction.measure(
    lm, [one], made.tokens, policy, batch=batch, progress=False
  )[one.name]
  sites = " to ".join(dict.fromkeys((one.reads, one.site)))
  return Look(
    name=name or f"SAE at {sites}",
    l0=reading.l0(),
    fvu=reading.fvu(),
    silent=reading.silent_share(),
    tokens=int(reading.count.sum()),
  )
