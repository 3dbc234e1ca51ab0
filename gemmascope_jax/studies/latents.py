"""What individual latents respond to: contexts, tokens, logit effects.

Reads the store, so it costs no language-model pass: one pass over the rows (see
`activity.collect`), then the few rows around the examples that are shown.
Letters: C chosen latents, M latents, D width of the site, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies import activity
from gemmascope_jax.studies.activity.contexts import Contexts

# Quantiles of its activations at which a latent's other contexts are taken,
# and random rows to know the quantiles from.
_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_SAMPLES = 24
# A token's mean activation is of this many occurrences, or not shown.
_LEAST_OCCURRENCES = 4
_SHOWN_TOKENS = 8
_AT_A_TIME = 512  # latents whose contexts are held at one time
_EFFECTS = 64  # latents whose effects on all logits are held at one time


class DeadSAEError(ValueError):
  """No latent of the SAE fires often enough to be described."""


def describe(
  lm,
  sae: SAE,
  store,
  *,
  latents: int = 36,
  contexts: int = 6,
  context_tokens: int = 32,
  rows: int | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Describes a few dozen latents of one SAE.

  The latents are spread evenly over the ranks of firing frequency among those
  that fired at least `contexts` times: the choice shows rare and frequent ones
  alike and is not picked by hand.

  Args:
    lm: a `Gemma`; its tokenizer gives the text, its embedding the logit
      effects.
    sae: a finished SAE of a site that `store` holds.
    store: activations with their tokens.
    latents: how many to describe.
    contexts: top contexts each, from different windows.
    context_tokens: tokens shown around the peak.
    rows: rows of the store to read; None: all.
    progress: show a progress bar.

  Returns:
    {"tokens": ..., "latents": [...]}, see `report.latent_results`; of each
    latent also its frequency's standard error, mean activation when firing,
    contexts at quantiles of that activation (of a random sample of the rows on
    which it fires), and tokens with the greatest mean activation.
  """
  if latents < 1:
    raise ValueError(f"latents {latents}: expected at least 1")
  found = gather(
    lm, sae, store, contexts=contexts, rows=rows, progress=progress
  )
  often = found.frequencies
  chosen = choose(often.counts, latents, contexts)
  if not len(chosen):
    raise DeadSAEError(
      f"no latent of the SAE at {sae.config.site} fired {contexts} times on"
      f" {often.rows} rows: it is dead on this data, or the data are not its"
      " own"
    )
  return {
    "tokens": {
      "rows": often.rows,
      "split": "train",
      "alive": int((often.counts > 0).sum()),
    },
    "latents": list(
      details(lm, sae, store, found, chosen, context_tokens=context_tokens)
    ),
  }


def gather(
  lm,
  sae: SAE,
  store,
  *,
  contexts: int,
  rows: int | None = None,
  progress: bool = True,
) -> activity.LatentStatistics:
  """The pass over the store that `details` need, for all latents at once.

  Args:
    lm: a `Gemma`.
    sae: a finished SAE of a site that `store` holds.
    store: activations with their tokens.
    contexts: top contexts to keep of each latent.
    rows: rows of the store to read; None: all.
    progress: show a progress bar.
  """
  if contexts < 1:
    raise ValueError(f"contexts {contexts}: expected at least 1")
  return activity.collect(
    {"": sae},
    store,
    sae.config.site,
    rows=rows,
    contexts=contexts,
    samples=_SAMPLES,
    vocabulary=lm.params["embedder"]["embedding"].shape[0],
    progress=progress,
  )[""]


def details(
  lm,
  sae: SAE,
  store,
  found: activity.LatentStatistics,
  chosen: np.ndarray,
  *,
  context_tokens: int = 32,
  logit_bins: int = 0,
) -> Iterator[dict[str, Any]]:
  """What is known of some latents, one by one.

  Holds the contexts of `_AT_A_TIME` latents at a time.

  Args:
    lm: a `Gemma`; its tokenizer gives the text, its embedding the logit
      effects.
    sae: the SAE.
    store: activations with their tokens.
    found: of `gather`, on the same.
    chosen: int64 [C], latents.
    context_tokens: tokens shown around the peak.
    logit_bins: of a histogram of the effects on all logits; 0: none is made.

  Yields:
    Of each latent, in order, what `describe` says.
  """
  often = found.frequencies
  for start in range(0, len(chosen), _AT_A_TIME):
    some = chosen[start : start + _AT_A_TIME]
    shown = Contexts(sae, store, sae.config.site, often.rows, context_tokens)
    for latent in some:
      shown.want(latent, _peaks(found.strongest, latent))
      shown.want(latent, _at_quantiles(found.random, latent)[1])
    shown.read()
    effects = logit_effects(lm, sae, some)
    for latent, effect in zip(some, effects, strict=True):
      detail = _detail(lm, found, shown, latent, effect)
      if logit_bins:
        detail["logit_histogram"] = _histogram(effect, logit_bins)
      yield detail


def _histogram(effect: np.ndarray, bins: int) -> dict[str, list]:
  if not effect.size:
    return {"edges": [], "counts": []}
  counts, edges = np.histogram(effect, bins)
  return {"edges": edges.tolist(), "counts": counts.tolist()}


def _detail(lm, found, shown, latent, effect) -> dict[str, Any]:
  often = found.frequencies
  counts, edges = found.values.histogram(latent)
  return {
    "index": int(latent),
    "frequency": float(often.frequency[latent]),
    "frequency_stderr": _finite(often.stderr[latent]),
    "max": float(found.values.maximum[latent]),
    "mean": float(found.values.mean[latent]),
    "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    "contexts": [
      shown.context(lm.tokenizer, latent, row)
      for row in _peaks(found.strongest, latent)
    ],
    "quantile_contexts": [
      {"quantile": quantile} | shown.context(lm.tokenizer, latent, row)
      for quantile, row in zip(
        *_at_quantiles(found.random, latent), strict=True
      )
    ],
    "top_tokens": top_tokens(lm.tokenizer, found.tokens, latent),
    **_tokens_of(lm.tokenizer, effect),
  }


def _finite(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None


def choose(counts: np.ndarray, latents: int, least: int) -> np.ndarray:
  """Latents spread evenly over the ranks of firing frequency."""
  alive = np.flatnonzero(counts >= least)
  order = alive[np.argsort(-counts[alive], kind="stable")]
  if len(order) <= latents:
    return order
  ranks = np.linspace(0, len(order) - 1, latents).round().astype(int)
  return order[ranks]


def _peaks(strongest, latent: int) -> np.ndarray:
  rows = strongest.rows[latent]
  return rows[rows >= 0]


def _at_quantiles(random, latent: int) -> tuple[tuple, np.ndarray]:
  """Quantiles of a latent's activations, and a row near each."""
  there = random.rows[latent] >= 0
  rows, values = random.rows[latent][there], random.values[latent][there]
  if not len(rows):
    return (), rows
  order = np.lexsort((rows, values))
  places = np.round(np.array(_QUANTILES) * (len(order) - 1)).astype(int)
  return _QUANTILES, rows[order][places]


def top_tokens(
  tokenizer, tokens, latent: int, count: int = _SHOWN_TOKENS
) -> list[list]:
  """The tokens with the greatest mean activation: [piece, mean].

  Args:
    tokenizer: with `pieces`.
    tokens: `tokens` of what `gather` gives.
    latent: which.
    count: how many, at most.
  """
  ids, means = tokens.top(latent, count, _LEAST_OCCURRENCES)
  return [
    [tokenizer.pieces([int(i)])[0], round(float(mean), 4)]
    for i, mean in zip(ids, means, strict=True)
  ]


def logit_effects(lm, sae, chosen):
  """Direct effect of each latent's direction on the logits: C times [V].

  Empty for sites that do not write where the unembedding reads.

  d_i through the final norm's gain and the unembedding, less its mean over the
  vocabulary; only residual sites write where the unembedding reads.
  """
  where = sites.parse(sae.config.target_site or sae.config.site)
  if where.kind in ("att", "mlp_in"):
    yield from [np.zeros(0)] * len(chosen)
    return
  gain = 1 + lm.params["final_norm"]["scale"].astype(jnp.float32)
  table = lm.params["embedder"]["embedding"]
  w_dec = np.asarray(sae.params.w_dec)
  for start in range(0, len(chosen), _EFFECTS):
    directions = w_dec[chosen[start : start + _EFFECTS]] * gain[None, :]
    yield from np.asarray(_through(directions, table))


@jax.jit
def _through(directions, table):
  logits = jnp.einsum(
    "cd,vd->cv", directions, table.astype(jnp.float32), precision="highest"
  )
  return logits - logits.mean(axis=1, keepdims=True)


def _tokens_of(
  tokenizer, effects: np.ndarray, count: int = _SHOWN_TOKENS
) -> dict:
  """The tokens that a latent promotes and suppresses most."""
  if not effects.size:
    return {"top_logits": [], "bottom_logits": []}
  order = np.argsort(effects, kind="stable")

  def show(ids):
    pieces = [tokenizer.pieces([int(i)])[0] for i in ids]
    return [
      [piece, round(float(effects[i]), 3)]
      for piece, i in zip(pieces, ids, strict=True)
    ]

  return {
    "top_logits": show(order[::-1][:count]),
    "bottom_logits": show(order[:count]),
  }
