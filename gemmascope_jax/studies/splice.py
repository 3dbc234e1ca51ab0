"""Splicing replacements into the language model, batch by batch.

The layers before the site run once a batch; each replacement then runs only
the layers after it and the loss, whose logits are never held whole. Positions
that the token policy excludes keep their own activation (the SAEs never saw
BOS, and the paper's tutorial leaves it alone).

Letters: S sequences, T tokens, D width of the site.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.studies.records import (
  SiteRecord,
  SpliceRecord,
  masked_sum,
)
from gemmascope_jax.studies.replacements import Replacement


def run_batch(
  lm,
  site: str,
  replacements: Mapping[str, Replacement],
  tokens: np.ndarray,
  policy: TokenPolicy,
  shift: np.ndarray | None = None,
) -> tuple[SiteRecord, dict[str, SpliceRecord]]:
  """The records of one batch of sequences.

  Args:
    lm: a `Gemma`.
    site: where to splice.
    replacements: by name; each is spliced alone.
    tokens: int32 [S, T]; padding is the policy's pad id.
    policy: which positions are spliced and counted.
    shift: float64 [D] near the site's mean, the same for all batches of a
      study; None: this batch's own mean.

  Returns:
    The site's record and one record a replacement.
  """
  where = sites.check(lm.config, site)
  tokens = jnp.asarray(tokens)
  mask = tokens != policy.pad_id
  keep = policy.keep(tokens)
  before, residual, x, losses = _clean(
    lm.config, str(where), lm.params, tokens, mask
  )
  kept, kept_loss = np.asarray(keep), np.asarray(policy.keep_loss(tokens))
  if shift is None:
    some = kept if kept.any() else np.ones_like(kept)
    shift = np.asarray(x, np.float64)[some].mean(axis=0)
  record = SiteRecord.of(x, kept, shift, losses, kept_loss)
  records = {}
  for name, replacement in replacements.items():
    loss, squared_error, active = _spliced(
      lm.config,
      str(where),
      lm.params,
      tokens,
      mask,
      keep,
      before,
      x,
      residual,
      replacement,
    )
    records[name] = SpliceRecord(
      squared_error=masked_sum(squared_error, kept),
      active=masked_sum(active, kept),
      loss=masked_sum(loss, kept_loss),
    )
  return record, records


def joint_losses(
  lm,
  replacements: Mapping[str, Replacement],
  tokens: np.ndarray,
  policy: TokenPolicy,
) -> np.ndarray:
  """Losses with every site replaced at once: float32 [S, T - 1].

  Each replacement sees the activation that the ones before it left.
  """
  tokens = jnp.asarray(tokens)
  return np.asarray(
    _joint(
      lm.config,
      lm.params,
      tokens,
      tokens != policy.pad_id,
      policy.keep(tokens),
      dict(replacements),
    )
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _clean(config, site, params, tokens, mask):
  """(stream before the site's block, last stream, x, losses) unspliced."""
  where = sites.parse(site)
  taps = [site]
  if where.layer and where.kind != "res":
    taps.append(f"res.{where.layer - 1}")
  out = gemma.forward(
    config, params, tokens, taps=tuple(taps), mask=mask, logits=False
  )
  before = out.acts.get(taps[-1]) if len(taps) > 1 else None
  losses = gemma.token_losses(
    config, params, out.residual[:, :-1], tokens[:, 1:]
  )
  return before, out.residual, out.acts[site].astype(jnp.float32), losses


@functools.partial(jax.jit, static_argnums=(0, 1))
def _spliced(
  config, site, params, tokens, mask, keep, before, x, residual, replacement
):
  """(losses, squared error, active) with one replacement."""
  where = sites.parse(site)
  x_hat, active = replacement.reconstruct(x)
  squared_error = jnp.square(x_hat - x).sum(axis=-1)
  spliced = jnp.where(keep[:, :, None], x_hat, x)
  if where.kind == "res":
    start, edits = (where.layer + 1, spliced), None
  else:
    start = None if before is None else (where.layer, before)
    edits = {site: lambda _: spliced}
  out = gemma.forward(
    config, params, tokens, edits=edits, mask=mask, logits=False, start=start
  )
  losses = gemma.token_losses(
    config, params, out.residual[:, :-1], tokens[:, 1:]
  )
  return losses, squared_error, active


@functools.partial(jax.jit, static_argnums=0)
def _joint(config, params, tokens, mask, keep, replacements):
  def edit(replacement):
    def apply(x):
      x_hat, _ = replacement.reconstruct(x.astype(jnp.float32))
      return jnp.where(keep[:, :, None], x_hat, x)

    return apply

  edits = {site: edit(each) for site, each in replacements.items()}
  return gemma.next_token_losses(config, params, tokens, edits=edits, mask=mask)


def batches(tokens: np.ndarray, size: int, pad_id: int) -> Sequence[np.ndarray]:
  """Slices of `size` sequences, the last padded with rows of padding.

  One shape for all, so nothing is compiled twice; rows of padding count for
  nothing under any policy.
  """
  found = []
  for start in range(0, len(tokens), size):
    batch = tokens[start : start + size]
    missing = size - len(batch)
    if missing:
      fill = np.full((missing, tokens.shape[1]), pad_id, tokens.dtype)
      batch = np.concatenate([batch, fill])
    found.append(batch)
  return found
