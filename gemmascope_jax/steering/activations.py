"""How strong latents get on text, for strengths that mean something.

The typical maximum of a latent is the median, over the sequences in which it
fires, of its largest activation there. Unlike the maximum over all text it does
not grow with the amount of text, and one odd token does not move it; it does
grow, slowly, with the length of a sequence.

Letters: S sequences, T tokens, K latents.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.steering import edits
from gemmascope_jax.studies import splice


def values(
  lm,
  sae: SAE,
  latents: int | Sequence[int],
  tokens: np.ndarray,
  policy: TokenPolicy,
  *,
  mask: np.ndarray | None = None,
  batch: int = 8,
) -> np.ndarray:
  """What latents are, token by token, in the model without edits.

  Args:
    lm: a `Gemma` with the layers up to the site that the SAE reads.
    sae: an SAE or a transcoder that says where it reads.
    latents: which.
    tokens: int [S, T], BOS first.
    policy: which positions count.
    mask: bool [S, T], real tokens; None: all but padding. (A model may say the
      padding token itself.)
    batch: sequences a pass.

  Returns:
    float32 [S, T, K]: 0 at positions that don't count.

  Raises:
    ValueError: an SAE of another model or policy, or of no known site; no such
      latent.
  """
  site = sae.config.site
  if site is None or sae.config.parts:
    raise ValueError(
      f"an SAE of {site or 'an unnamed site'}: expected one of a single site,"
      " which says where it was trained"
    )
  if sae.config.token_policy is not None:
    policy.require_same(sae.config.token_policy, "this text", "the SAE")
  reader, chosen = edits.reader(sae, latents)
  tokens, found = np.asarray(tokens), []
  mask = tokens != policy.pad_id if mask is None else mask
  parts = splice.batches(lm.params, tokens, batch, policy.pad_id)
  masks = splice.batches(lm.params, mask, batch, False)
  for part, real in zip(parts, masks, strict=True):
    read = _values(lm.config, site, lm.params, part, real, reader)
    read = np.asarray(read)[..., np.asarray(chosen)]
    found.append(np.where(policy.keep(part)[..., None], read, 0))
  return np.concatenate(found)[: len(tokens)]


def typical_maxima(found: np.ndarray) -> np.ndarray:
  """The typical maximum of each latent; see the module.

  Args:
    found: [S, T, K], what `values` gives.

  Returns:
    float64 [K].

  Raises:
    ValueError: a latent that fires nowhere (says which of the K).
  """
  peaks = found.max(axis=1).astype(np.float64)
  silent = np.flatnonzero((peaks > 0).sum(axis=0) == 0)
  if silent.size:
    raise ValueError(
      f"latent number {silent[0]} of those asked for fires at none of the"
      f" {found.shape[0] * found.shape[1]:,} tokens: it has no typical maximum;"
      " give more text, choose another, or give strengths as activations"
    )
  return np.array([np.median(each[each > 0]) for each in peaks.T])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values(config, site, params, tokens, mask, reader):
  out = gemma.forward(
    config,
    params,
    tokens,
    taps=(site,),
    mask=mask,
    num_layers=sites.parse(site).layer + 1,
  )
  return reader.encode(out.acts[site])
