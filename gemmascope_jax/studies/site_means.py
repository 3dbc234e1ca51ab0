"""Means of sites' activations over an evaluation's own tokens.

For mean ablation, and for sums that are free of cancellation.

Letters: S sequences, T tokens, D width of a site.
"""

from __future__ import annotations

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
from gemmascope_jax.studies import parts, splice


def means(
  lm,
  names: Sequence[str],
  tokens: np.ndarray,
  policy: TokenPolicy,
  folder: str | os.PathLike,
  *,
  batch: int = 8,
  progress: bool = True,
) -> dict[str, np.ndarray]:
  """Mean activation of each site over the tokens that count: float64 [D].

  One pass for all sites, up to the last of their layers.

  Args:
    lm: a `Gemma`.
    names: sites.
    tokens: int32 [S, T].
    policy: which positions count.
    folder: where the result is kept.
    batch: sequences a pass.
    progress: show a progress bar.

  Raises:
    ValueError: no token counts.
  """
  names = sorted({str(sites.check(lm.config, name)) for name in names})
  key = _key("means", lm, names, tokens, policy, batch)

  def make() -> dict[str, np.ndarray]:
    totals, count = dict.fromkeys(names, 0.0), 0
    for part in tqdm.tqdm(
      splice.batches(lm.params, tokens, batch, policy.pad_id),
      desc="means of sites",
      unit="batch",
      disable=not progress or jax.process_index() > 0,
    ):
      keep = np.asarray(policy.keep(part))
      acts = _acts(
        lm.config, tuple(names), lm.params, part, part != policy.pad_id
      )
      for name in names:
        totals[name] += np.asarray(acts[name], np.float64)[keep].sum(axis=0)
      count += int(keep.sum())
    if not count:
      raise ValueError(
        "nothing to average: no sequence has a token that counts under this"
        " token policy"
      )
    return {name: total / count for name, total in totals.items()}

  return parts.cached(pathlib.Path(folder) / f"means_{key}.npz", make)


def sums(
  lm,
  name: str,
  tokens: np.ndarray,
  masks: Mapping[str, np.ndarray],
  shift: np.ndarray,
  folder: str | os.PathLike,
  *,
  pad_id: int,
  batch: int = 8,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Sums over parts of the tokens of a site's activations.

  Args:
    lm: a `Gemma`.
    name: the site.
    tokens: int32 [S, T].
    masks: bool [S, T] of each part.
    shift: float64 [D].
    folder: where the result is kept.
    pad_id: of tokens.
    batch: sequences a pass.

  Returns:
    Of each part float64 [S, D], sums of x - shift, and float64 [S], of
    ||x||^2.
  """
  arrays = artifacts.sha256_arrays([*masks.values(), shift])
  key = _key("sums", lm, [name], tokens, [sorted(masks), arrays, pad_id], batch)

  def make() -> dict[str, np.ndarray]:
    found = {f"{part}/{what}": [] for part in masks for what in "xn"}
    done = 0
    for tokens_of in splice.batches(lm.params, tokens, batch, pad_id):
      acts = _acts(
        lm.config, (name,), lm.params, tokens_of, tokens_of != pad_id
      )
      rows = min(batch, len(tokens) - done)
      x = np.asarray(acts[name], np.float64)[:rows]
      for part, mask in masks.items():
        one = mask[done : done + rows, :, None]
        moved = np.where(one, x - shift[None, None], 0)
        norm = np.square(np.where(one, x, 0)).sum(axis=(1, 2))
        found[f"{part}/x"].append(moved.sum(axis=1))
        found[f"{part}/n"].append(norm)
      done += rows
    return {key: np.concatenate(each) for key, each in found.items()}

  found = parts.cached(pathlib.Path(folder) / f"sums_{key}.npz", make)
  return {part: (found[f"{part}/x"], found[f"{part}/n"]) for part in masks}


def _key(what: str, lm, names, tokens, counted, batch) -> str:
  return artifacts.fingerprint(
    [
      what,
      lm.weights_hash,
      str(jax.tree.leaves(lm.params)[0].dtype),
      artifacts.code_version(),
      names,
      artifacts.sha256_arrays([tokens]),
      counted,
      batch,
    ]
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _acts(config, names, params, tokens, mask):
  last = max(sites.parse(name).layer for name in names)
  out = gemma.forward(
    config, params, tokens, taps=names, mask=mask, num_layers=last + 1
  )
  return {name: out.acts[name].astype(jnp.float32) for name in names}
