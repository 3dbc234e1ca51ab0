"""Sparsity-fidelity (Gemma Scope 4.1): delta loss, FVU and L0 of SAEs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies import splice
from gemmascope_jax.studies.estimate import Estimate
from gemmascope_jax.studies.records import (
  SiteRecord,
  SpliceRecord,
  concatenate,
)
from gemmascope_jax.studies.replacements import Constant, FromSAE

_ZERO = "zero ablation"
_SAE = "sae"


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """What splicing one SAE does; losses in nats a token.

  Attributes:
    loss_clean: of the language model as it is.
    loss_spliced: with the SAE's reconstruction at its site.
    loss_zero: with zeros there.
    delta_loss: loss_spliced - loss_clean, paired.
    loss_recovered: 1 - delta_loss / (loss_zero - loss_clean).
    fvu: fraction of variance unexplained.
    l0: active latents a token; None for what has none.
    kl: divergence of the next token's distribution from the model's own, nats
      a token; None where all sites are spliced at once.
    cosine: mean cosine of activation and reconstruction.
    bias: relative reconstruction bias gamma; below 1 reconstructions are too
      small (Gated SAE paper, 4.2). None for zero ablation.
  """

  loss_clean: Estimate
  loss_spliced: Estimate
  loss_zero: Estimate
  delta_loss: Estimate
  loss_recovered: Estimate
  fvu: Estimate
  l0: Estimate | None
  kl: Estimate | None
  cosine: Estimate
  bias: Estimate | None


def fidelity(
  lm,
  saes: Mapping[str, SAE],
  tokens,
  *,
  policy: TokenPolicy | None = None,
  batch: int = 8,
  joint: bool = False,
) -> dict[str, Fidelity]:
  """Delta loss, FVU and L0 of an SAE at each site.

  BOS, EOS and padding are neither spliced nor counted, unless another policy
  is given. L0 and FVU are measured on the unspliced model's activations.

  Args:
    lm: a `Gemma` with all its layers.
    saes: an SAE for each site.
    tokens: int [S, T], each sequence starting with BOS.
    policy: default: the tokenizer's, `TokenPolicy.of(lm.tokenizer)`.
    batch: sequences a forward pass.
    joint: splice all sites at once; the losses are then of all together.

  Returns:
    A `Fidelity` for each site.

  Raises:
    ValueError: an SAE of another site, width or token policy; tokens that are
      not [S, T] or hold nothing that counts; a model loaded without all its
      layers.
  """
  policy = policy or TokenPolicy.of(lm.tokenizer)
  tokens = check_tokens(lm, tokens)
  for site, sae in saes.items():
    check_sae(lm, site, sae, policy)
  records: dict[str, list] = {site: [] for site in saes}
  together, zeros = [], []
  shifts: dict[str, np.ndarray] = {}
  for part in splice.batches(lm.params, tokens, batch, policy.pad_id):
    for site, sae in saes.items():
      zero = Constant(jnp.zeros(sites.site_width(lm.config, site)))
      replacements = {_ZERO: zero, _SAE: FromSAE(sae)}
      record = splice.run_batch(
        lm, site, replacements, part, policy, shifts.get(site)
      )
      shifts.setdefault(site, record[0].shift)
      records[site].append(record)
    if joint:
      for found, each in (
        (together, {site: FromSAE(sae) for site, sae in saes.items()}),
        (
          zeros,
          {
            site: Constant(jnp.zeros(sites.site_width(lm.config, site)))
            for site in saes
          },
        ),
      ):
        found.append(splice.joint_losses(lm, each, part, policy))
  results = {}
  for site in saes:
    record: SiteRecord = concatenate([pair[0] for pair in records[site]])
    spliced = concatenate([pair[1][_SAE] for pair in records[site]])
    zero = concatenate([pair[1][_ZERO] for pair in records[site]])
    if joint:
      spliced.loss = np.concatenate(together)
      spliced.kl = np.full_like(spliced.kl, np.nan)
      zero.loss = np.concatenate(zeros)
    results[site] = summarise(record, spliced, zero)
  return results


def summarise(
  site: SiteRecord, spliced: SpliceRecord, zero: SpliceRecord
) -> Fidelity:
  """The metrics of one replacement from its records."""
  return Fidelity(
    loss_clean=site.clean(),
    loss_spliced=spliced.loss_spliced(site),
    loss_zero=zero.loss_spliced(site),
    delta_loss=spliced.delta_loss(site),
    loss_recovered=spliced.loss_recovered(site, zero),
    fvu=spliced.fvu(site),
    l0=spliced.l0(site),
    kl=None if np.isnan(spliced.kl).any() else spliced.divergence(site),
    cosine=spliced.cosine(site),
    bias=spliced.bias(site),
  )


def check_tokens(lm, tokens) -> np.ndarray:
  """int32 [S, T] for evaluation, or an error that says what is wrong."""
  tokens = np.asarray(tokens)
  if tokens.ndim != 2 or tokens.shape[1] < 2 or not len(tokens):
    raise ValueError(
      f"tokens have shape {tokens.shape}; expected [S, T] with at least one"
      " sequence of at least two tokens"
    )
  if not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(f"tokens have dtype {tokens.dtype}; expected integers")
  low, high = tokens.min(), tokens.max()
  if low < 0 or high >= lm.config.vocab_size:
    raise ValueError(
      f"token ids run from {low} to {high}, but {lm.config.name} has ids 0.."
      f"{lm.config.vocab_size - 1}: the text was tokenised for another model"
    )
  return tokens.astype(np.int32)


def check_sae(
  lm, site: str, sae: SAE, policy: TokenPolicy, *, target: str | None = None
) -> None:
  """Refuses an SAE that was not made for this site of this model.

  Args:
    lm: a `Gemma`.
    site: where it reads.
    sae: an SAE, or a transcoder.
    policy: of the evaluation.
    target: where a transcoder writes; None: an SAE is asked for.

  Raises:
    ValueError: names what differs.
  """
  width = sites.site_width(lm.config, sites.check(lm.config, site))
  if sae.config.site not in (None, site):
    raise ValueError(
      f"the SAE was trained at site {sae.config.site}, not {site}: splice it"
      " where it belongs"
    )
  if sae.config.target_site != target:
    raise ValueError(
      f"a transcoder from {site} to {sae.config.target_site} does not"
      " reconstruct what it reads: it can't be spliced in where an SAE is; the"
      " studies of `python -m experiments.evaluate --study` know how"
      if target is None
      else f"{target} is not where this transcoder writes"
      f" ({sae.config.target_site})"
    )
  if sae.site_width != width:
    raise ValueError(
      f"the SAE reads activations of width {sae.site_width}, but {site} of"
      f" {lm.config.name} has width {width}: it is of another model or site"
    )
  if target is not None:
    width = sites.site_width(lm.config, sites.check(lm.config, target))
    if sae.target_width != width:
      raise ValueError(
        f"the transcoder writes activations of width {sae.target_width}, but"
        f" {target} of {lm.config.name} has width {width}: it is of another"
        " model or site"
      )
  trained_on = sae.config.details().get("weights_hash")
  if trained_on not in (None, lm.weights_hash):
    raise ValueError(
      f"the SAE was trained on {sae.config.model} (weights {trained_on[:12]}),"
      f" not on {lm.label} (weights {lm.weights_hash[:12]}): load that model"
    )
  if sae.config.token_policy is not None:
    policy.require_same(sae.config.token_policy, "this evaluation", "the SAE")
