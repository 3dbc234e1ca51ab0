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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import on_mesh, sites
from gemmascope_jax.gemma.divergence import divergence
from gemmascope_jax.studies.records import SiteRecord, SpliceRecord
from gemmascope_jax.studies.replacements import Replacement

# Replacements whose predictions are computed together: each has the model's own
# logits to be compared with, which are made once for all of them.
_AT_ONCE = 4


def run_batch(
  lm,
  site: str,
  replacements: Mapping[str, Replacement],
  tokens: np.ndarray,
  policy: TokenPolicy,
  shift: np.ndarray | None = None,
  *,
  splice_special: bool = False,
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
    splice_special: whether positions that the policy excludes are spliced too,
      but for padding; they are never counted.

  Returns:
    The site's record and one record a replacement.
  """
  where = sites.check(lm.config, site)
  reads = sorted({r.reads for r in replacements.values() if r.reads})
  for name in reads:
    sites.check(lm.config, name)
  tokens = jnp.asarray(tokens)
  mask = tokens != policy.pad_id
  keep = policy.keep(tokens)
  before, residual, acts = _clean(
    lm.config, str(where), tuple(reads), lm.params, tokens, mask
  )
  x = acts[str(where)]
  kept, kept_loss = np.asarray(keep), np.asarray(policy.keep_loss(tokens))
  if shift is None:
    some = kept if kept.any() else np.ones_like(kept)
    shift = np.asarray(x, np.float64)[some].mean(axis=0)
  special = np.asarray(mask) & ~kept
  near = jnp.asarray(shift, jnp.float32)
  given = (tokens, mask, keep, mask if splice_special else keep)
  parts, streams = [], []
  for replacement in replacements.values():
    part, stream = _spliced(
      lm.config,
      str(where),
      lm.params,
      given,
      before,
      x,
      acts[replacement.reads or str(where)],
      residual,
      near,
      replacement,
    )
    parts.append(part)
    streams.append(stream)
  losses, predictions = _predictions(lm, residual, streams, tokens)
  record = SiteRecord.of(x, kept, special, shift, losses, kept_loss)
  records = {}
  for name, part, (loss, kl) in zip(
    replacements, parts, predictions, strict=True
  ):
    part = {key: np.asarray(value) for key, value in part.items()}
    part["moments"] = part["moments"][None].astype(np.float64)
    records[name] = SpliceRecord(loss=loss, kl=kl, **part)
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


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _clean(config, site, reads, params, tokens, mask):
  """(stream before the site's block, last stream, acts) unspliced."""
  where = sites.parse(site)
  taps = {site, *reads}
  before = None
  if where.layer and where.kind != "res":
    before = f"res.{where.layer - 1}"
    taps.add(before)
  out = gemma.forward(
    config, params, tokens, taps=tuple(sorted(taps)), mask=mask, logits=False
  )
  acts = {name: out.acts[name].astype(jnp.float32) for name in (site, *reads)}
  return before and out.acts[before], out.residual, acts


@functools.partial(jax.jit, static_argnums=(0, 1))
def _spliced(
  config, site, params, given, before, x, source, residual, near, replacement
):
  """(numbers of each token, last stream) with one replacement."""
  tokens, mask, keep, splice = given
  where = sites.parse(site)
  x_hat, active = replacement.reconstruct(source)
  error, kept = x_hat - x, keep[:, :, None]
  moved = x_hat - near[None, None]
  total = lambda values: jnp.where(kept, values, 0).sum(axis=(0, 1))
  part = {
    "squared_error": jnp.square(error).sum(axis=-1),
    "active": active,
    "norm": jnp.square(x_hat).sum(axis=-1),
    "dot": (x_hat * x).sum(axis=-1),
    "moments": jnp.stack(
      [
        total(error),
        total(moved),
        total(jnp.square(moved)),
        total(moved * (x - near[None, None])),
      ]
    ),
  }
  spliced = jnp.where(splice[:, :, None], x_hat, x)
  if where.kind == "res":
    start, edits = (where.layer + 1, spliced), None
  else:
    start = None if before is None else (where.layer, before)
    edits = {site: lambda _: spliced}
  out = gemma.forward(
    config, params, tokens, edits=edits, mask=mask, logits=False, start=start
  )
  return part, out.residual


def _predictions(lm, own, streams, tokens):
  """The model's losses, and (losses, KL) of each of the last streams."""
  if not streams:
    return _own_losses(lm.config, lm.params, own, tokens), []
  found = []
  for start in range(0, len(streams), _AT_ONCE):
    some = jnp.stack(streams[start : start + _AT_ONCE])
    own_losses, *of_each = _divergence(lm.config, lm.params, own, some, tokens)
    found += zip(*map(np.asarray, of_each), strict=True)
  return own_losses, found


@functools.partial(jax.jit, static_argnums=0)
def _divergence(config, params, own, edited, tokens):
  return divergence(
    config, params, own[:, :-1], edited[:, :, :-1], tokens[:, 1:]
  )


@functools.partial(jax.jit, static_argnums=0)
def _own_losses(config, params, own, tokens):
  return gemma.token_losses(config, params, own[:, :-1], tokens[:, 1:])


@functools.partial(jax.jit, static_argnums=0)
def _joint(config, params, tokens, mask, keep, replacements):
  def edit(replacement):
    def apply(x):
      x_hat, _ = replacement.reconstruct(x.astype(jnp.float32))
      return jnp.where(keep[:, :, None], x_hat, x)

    return apply

  edits = {site: edit(each) for site, each in replacements.items()}
  return gemma.next_token_losses(config, params, tokens, edits=edits, mask=mask)


def batches(
  params: Mapping[str, Any], tokens: np.ndarray, size: int, pad_id: int
) -> Sequence[np.ndarray]:
  """Slices of `size` sequences, the last padded with rows of padding.

  One shape for all, so nothing is compiled twice; rows of padding count for
  nothing under any policy. They cost a forward pass as much as text does, so
  where there are fewer than `size`, only what the mesh needs is added.

  Args:
    params: whose mesh divides the sequences.
    tokens: [S, T], or what else there is of each token.
    size: sequences a slice, at most.
    pad_id: fills rows.
  """
  ways = on_mesh.ways(params)
  found, size = [], min(size, max(-(-len(tokens) // ways), 1) * ways)
  for start in range(0, len(tokens), size):
    batch = tokens[start : start + size]
    missing = size - len(batch)
    if missing:
      fill = np.full((missing, tokens.shape[1]), pad_id, tokens.dtype)
      batch = np.concatenate([batch, fill])
    found.append(batch)
  return found
