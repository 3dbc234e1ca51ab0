"""Latents that switch on or off when something is rounded.

Of the active latents A of an SAE in float32 on the model's activations, and
those B of the same SAE with itself, the model, or both in another format,

  flips = sum |A xor B| / sum |A|,

sums over the tokens that count: 0 if nothing switches, 2 if all that were
active are not and as many others are.

Letters: S sequences, T tokens, M latents, P pairs.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gemmascope_jax import artifacts, gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.studies import measure, parts, splice
from gemmascope_jax.studies.estimate import Estimate, ratio
from gemmascope_jax.studies.precision import low_precision
from gemmascope_jax.studies.replacements import Replacement


def flips(
  lm,
  site: str,
  pairs: Mapping[str, tuple[Replacement, Replacement]],
  tokens: np.ndarray,
  policy: TokenPolicy,
  folder: str | os.PathLike,
  *,
  other=None,
  batch: int = 8,
  progress: bool = True,
) -> dict[str, Estimate | None]:
  """The share of flips of each pair.

  Args:
    lm: a `Gemma`; layers after the site do not run.
    site: where the SAEs read.
    pairs: by name, the SAE whose active latents are A and that of B: `FromSAE`
      or `LowPrecisionSAE`.
    tokens: int32 [S, T].
    policy: which tokens count.
    folder: for what was measured; a run that was killed goes on from there.
    other: the model whose activations the second SAE of each pair reads; None:
      `lm`.
    batch: sequences a pass.
    progress: show a progress bar.

  Returns:
    An estimate over sequences; None where no latent is active, or where the
    other model's activations are not finite.
  """
  site = str(sites.check(lm.config, site))
  other = lm if other is None else other
  key = artifacts.fingerprint(
    [
      "flips",
      [[m.weights_hash, _dtype(m)] for m in (lm, other)],
      artifacts.code_version(),
      site,
      artifacts.sha256_arrays([tokens]),
      policy,
      batch,
      [[measure.identity(each) for each in pair] for pair in pairs.values()],
    ]
  )
  found = []
  batches = splice.batches(lm.params, tokens, batch, policy.pad_id)
  for number, part in enumerate(
    tqdm.tqdm(
      batches,
      desc=f"flips of {len(pairs)} at {site}",
      unit="batch",
      disable=not progress or jax.process_index() > 0,
    )
  ):
    found.append(
      parts.cached(
        pathlib.Path(folder) / f"flips_{key}_{number:05d}.npz",
        functools.partial(
          _batch, lm, other, site, list(pairs.values()), part, policy
        ),
      )
    )
  sums = {
    name: np.concatenate([each[name] for each in found], axis=1)
    for name in ("flipped", "active")
  }
  return {
    name: _share(flipped, active)
    for name, flipped, active in zip(
      pairs, sums["flipped"], sums["active"], strict=True
    )
  }


def _share(flipped, active) -> Estimate | None:
  if not active.any() or not np.isfinite(flipped).all():
    return None
  return ratio(flipped, active)


def _batch(lm, other, site, pairs, tokens, policy) -> dict[str, np.ndarray]:
  """float64 [P, S]: flipped and active latents of each sequence."""
  tokens = jnp.asarray(tokens)
  mask, keep = tokens != policy.pad_id, policy.keep(tokens)
  x = _acts(lm.config, site, lm.params, tokens, mask)
  near = x
  if other is not lm:
    near = _acts(other.config, site, other.params, tokens, mask)
  found = [
    np.asarray(_sums(*pair, x, near, keep), np.float64) for pair in pairs
  ]
  flipped, active = np.stack(found, axis=1)
  return {"flipped": flipped, "active": active}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _acts(config, site, params, tokens, mask):
  layers = sites.parse(site).layer + 1
  out = gemma.forward(
    config, params, tokens, taps=(site,), mask=mask, num_layers=layers
  )
  return out.acts[site].astype(jnp.float32)


@jax.jit
def _sums(one, other, x, near, keep):
  """float32 [2, S]: flipped, NaN if it can't be said, and active latents."""
  before = low_precision.active(one, x)
  after = low_precision.active(other, near)
  total = lambda count: jnp.where(keep, count, 0).sum(axis=1)
  known = jnp.isfinite(near).all(axis=-1) | ~keep
  flipped = total((before != after).sum(axis=-1)).astype(jnp.float32)
  return jnp.stack(
    [
      jnp.where(known.all(axis=1), flipped, jnp.nan),
      total(before.sum(axis=-1)).astype(jnp.float32),
    ]
  )


def _dtype(lm) -> str:
  return str(jax.tree.leaves(lm.params)[0].dtype)
