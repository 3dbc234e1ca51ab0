"""L0, FVU and silent latents of SAEs from one pass, without splicing.

What a release says of its SAEs beside the losses, and what a check of it
measures again: the layers after the last site, the vocabulary and the losses
are not computed, and all sites share the pass. The definitions are those of
`records`.

A latent is silent if it fires at none of the tokens that count. With m of M
latents silent, and u_s that fire in sequence s alone, the share without s is
(m + u_s) / M; its standard error is the jackknife's over the n sequences,

  se^2 = (n - 1) / n * sum_s (u_s - mean(u))^2 / M^2.

Letters: S sequences, T tokens, D width of the site, M latents.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gemmascope_jax import artifacts, gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE, weights_hash
from gemmascope_jax.studies import parts, splice
from gemmascope_jax.studies.estimate import Estimate, ratio
from gemmascope_jax.studies.records import (
  SiteRecord,
  concatenate,
  masked_sum,
)
from gemmascope_jax.studies.subjects import Subject


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
  """Sums over each sequence's tokens that count; float64.

  Attributes:
    count: [S], such tokens.
    active: [S], active latents.
    squared_error: [S], ||x - x_hat||^2.
    variance: [S], ||x - mean||^2.
    only: [S], latents that fire in that sequence alone.
    mean: [D], what the variance is about.
    silent: [], latents that fire nowhere.
    latents: [], M.
  """

  count: np.ndarray
  active: np.ndarray
  squared_error: np.ndarray
  variance: np.ndarray
  only: np.ndarray
  mean: np.ndarray
  silent: np.ndarray
  latents: np.ndarray

  def l0(self) -> Estimate:
    """Active latents a token."""
    return ratio(self.active, self.count)

  def fvu(self) -> Estimate:
    """Fraction of variance unexplained."""
    return ratio(self.squared_error, self.variance)

  def silent_share(self) -> Estimate:
    """Share of the latents that are silent; see the module."""
    only = self.only[self.count > 0]
    n, width = len(only), float(self.latents)
    error = None
    if n > 1:
      spread = np.square(only - only.mean()).sum()
      error = float(np.sqrt((n - 1) / n * spread) / width)
    return Estimate(float(self.silent) / width, error, n)


def measure(
  lm,
  subjects: Sequence[Subject],
  tokens: np.ndarray,
  policy: TokenPolicy,
  *,
  means: Mapping[str, np.ndarray] | None = None,
  batch: int = 8,
  folder: str | os.PathLike | None = None,
  progress: bool = True,
) -> dict[str, Reading]:
  """Reads every SAE on all tokens.

  Args:
    lm: a `Gemma`; layers after the last site are not needed.
    subjects: SAEs and transcoders, each with a name of its own.
    tokens: int32 [S, T], each sequence starting with BOS.
    policy: which positions count.
    means: float64 [D] of each replaced site that the variance is about; None:
      the mean over these tokens.
    batch: sequences a pass.
    folder: where what is measured is kept; None: nowhere.
    progress: show a progress bar.

  Returns:
    Of each subject, by name, what was read.

  Raises:
    ValueError: no token counts, or a site that the model lacks.
  """
  for one in subjects:
    sites.check(lm.config, one.reads)
    sites.check(lm.config, one.site)
  if not np.asarray(policy.keep(tokens)).any():
    raise ValueError(
      "nothing to average: no sequence has a token that counts under this"
      " token policy"
    )
  paths = {
    one.name: _path(folder, lm, one, tokens, policy, means, batch)
    for one in subjects
  }
  missing = [
    one
    for one in subjects
    if paths[one.name] is None or not paths[one.name].exists()
  ]
  new = _read(lm, missing, tokens, policy, means or {}, batch, progress)
  found = {}
  for one in subjects:
    # A file that is there but damaged is measured again, alone.
    make = lambda one=one: dataclasses.asdict(
      new.get(one.name)
      or _read(lm, [one], tokens, policy, means or {}, batch, progress)[
        one.name
      ]
    )
    found[one.name] = Reading(**parts.cached(paths[one.name], make))
  return found


def _path(folder, lm, one, tokens, policy, means, batch) -> pathlib.Path | None:
  """A name made of everything that a reading depends on."""
  if folder is None:
    return None
  key = artifacts.fingerprint(
    [
      lm.weights_hash,
      str(jax.tree.leaves(lm.params)[0].dtype),
      artifacts.code_version(),
      [one.reads, one.site, one.sae.config.k, weights_hash(one.sae)],
      artifacts.sha256_arrays([tokens]),
      None if means is None else artifacts.sha256_arrays([means[one.site]]),
      policy,
      batch,
    ]
  )
  return pathlib.Path(folder) / f"reading_{key}.npz"


def _read(lm, subjects, tokens, policy, means, batch, progress):
  """One pass over the tokens for all subjects."""
  names = sorted({name for one in subjects for name in (one.reads, one.site)})
  records: dict[str, list[SiteRecord]] = {one.site: [] for one in subjects}
  sums = {one.name: _Sums(one.sae.width) for one in subjects}
  given = (
    splice.batches(lm.params, tokens, batch, policy.pad_id) if subjects else ()
  )
  for part in tqdm.tqdm(
    given,
    desc=f"read {len(subjects)} SAEs",
    unit="batch",
    disable=not progress or jax.process_index() > 0,
  ):
    keep, mask = np.asarray(policy.keep(part)), part != policy.pad_id
    acts = _acts(lm.config, tuple(names), lm.params, part, mask)
    nothing = np.zeros((len(part), part.shape[1] - 1), np.float32)
    for site, each in records.items():
      x = np.asarray(acts[site])
      some = keep if keep.any() else np.ones_like(keep)
      shift = each[0].shift if each else x[some].astype(np.float64).mean(axis=0)
      each.append(
        SiteRecord.of(x, keep, mask & ~keep, shift, nothing, nothing > 0)
      )
    for one in subjects:
      sae = one.replacement().sae
      sums[one.name].add(
        *map(np.asarray, _of(sae, acts[one.reads], acts[one.site], keep)), keep
      )
  return {
    one.name: _reading(
      concatenate(records[one.site]),
      sums[one.name],
      means.get(one.site),
      len(tokens),
    )
    for one in subjects
  }


class _Sums:
  """What is added up over batches of one SAE."""

  def __init__(self, width: int):
    self.active, self.squared_error = [], []
    self.times = np.zeros(width, np.int64)  # sequences in which each fires
    self.last = np.zeros(width, np.int64)  # the last of them
    self.sequences = 0

  def add(self, active, squared_error, fires, keep) -> None:
    """A batch: [S, T], [S, T], bool [S, M], bool [S, T]."""
    self.active.append(masked_sum(active, keep))
    self.squared_error.append(masked_sum(squared_error, keep))
    for row in fires:
      self.times += row
      self.last[row] = self.sequences
      self.sequences += 1


def _reading(record, sums, mean, sequences) -> Reading:
  once = sums.last[sums.times == 1]
  cut = lambda values: np.asarray(values, np.float64)[:sequences]
  return Reading(
    count=cut(record.count),
    active=cut(np.concatenate(sums.active)),
    squared_error=cut(np.concatenate(sums.squared_error)),
    variance=cut(record.variance(mean)),
    only=cut(np.bincount(once, minlength=sums.sequences)),
    mean=record.shift + record.mean_shift() if mean is None else mean,
    silent=np.asarray((sums.times == 0).sum(), np.float64),
    latents=np.asarray(len(sums.times), np.float64),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _acts(config, names, params, tokens, mask):
  out = gemma.forward(
    config,
    params,
    tokens,
    taps=names,
    mask=mask,
    num_layers=sites.layers_needed(config, names),
  )
  return {name: out.acts[name].astype(jnp.float32) for name in names}


@jax.jit
def _of(sae: SAE, source, x, keep):
  """Active latents, squared error, and which latents fire where it counts."""
  latents = sae.encode(source)
  error = sae.decode(latents, source) - x
  fires = ((latents > 0) & keep[:, :, None]).any(axis=1)
  return (
    (latents > 0).sum(axis=-1),
    jnp.square(error).sum(axis=-1),
    fires,
  )
