"""What individual latents respond to: top contexts, frequency, logit effects.

Reads the store, so it costs no language-model pass: two passes over rows with
the encoder, in bounded memory. Letters: B rows, M latents, C chosen latents,
D width of the site, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE

_BLOCK = 8_192
_BINS = 24


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
    {"tokens": ..., "latents": [...]}, see `report.latent_results`.
  """
  if latents < 1 or contexts < 1:
    raise ValueError(
      f"latents {latents}, contexts {contexts}: expected at least 1 of each"
    )
  site = sae.config.site
  rows = min(rows or store.rows, store.rows)
  sae = jax.tree.map(jnp.asarray, sae)
  counts = np.zeros(sae.width, np.int64)
  for _, x in _blocks(store, site, rows, "firing frequencies", progress):
    counts += np.asarray(_fired(sae, x[0], x[1]), np.int64)
  chosen = _choose(counts, latents, contexts)
  if not len(chosen):
    raise DeadSAEError(
      f"no latent of the SAE at {site} fired {contexts} times on {rows} rows:"
      " it is dead on this data, or the data are not its own"
    )
  values = np.zeros((rows, len(chosen)), np.float32)
  for start, x in _blocks(store, site, rows, "top contexts", progress):
    found = np.asarray(_values(sae, x[0], jnp.asarray(chosen)))
    values[start : start + len(found)] = found[: min(_BLOCK, rows - start)]
  index = store.index(0, rows)
  effects = _logit_effects(lm, sae, chosen)
  described = []
  for column, latent in enumerate(chosen):
    active = values[:, column]
    described.append(
      {
        "index": int(latent),
        "frequency": float(counts[latent] / rows),
        "max": float(active.max()),
        "histogram": _histogram(active[active > 0]),
        "contexts": _contexts(
          lm.tokenizer, store, index, active, contexts, context_tokens
        ),
        **_tokens_of(lm.tokenizer, effects[column]),
      }
    )
  return {
    "tokens": {
      "rows": rows,
      "split": "train",
      "alive": int((counts > 0).sum()),
    },
    "latents": described,
  }


def _blocks(store, site, rows, what, progress):
  """(start, (x [_BLOCK, D], valid [_BLOCK])), the last block padded."""
  bar = tqdm.tqdm(
    total=rows,
    desc=what,
    unit="row",
    unit_scale=True,
    disable=not progress or jax.process_index() > 0,
  )
  for start in range(0, rows, _BLOCK):
    x = store.read(site, start, min(start + _BLOCK, rows))
    valid = np.arange(_BLOCK) < len(x)
    padded = np.zeros((_BLOCK, x.shape[1]), np.float32)
    padded[: len(x)] = x
    yield start, (jnp.asarray(padded), jnp.asarray(valid))
    bar.update(len(x))
  bar.close()


@jax.jit
def _fired(sae, x, valid):
  return ((sae.encode(x) > 0) & valid[:, None]).sum(axis=0)


@jax.jit
def _values(sae, x, chosen):
  """Activations of the chosen latents only: [B, C]."""
  params = sae.params.replace(
    w_enc=sae.params.w_enc[:, chosen],
    b_enc=sae.params.b_enc[chosen],
    threshold=sae.params.threshold[chosen],
  )
  return sae.replace(params=params).encode(x)


def _choose(counts: np.ndarray, latents: int, least: int) -> np.ndarray:
  """Latents spread evenly over the ranks of firing frequency."""
  alive = np.flatnonzero(counts >= least)
  order = alive[np.argsort(-counts[alive], kind="stable")]
  if len(order) <= latents:
    return order
  ranks = np.linspace(0, len(order) - 1, latents).round().astype(int)
  return order[ranks]


def _histogram(active: np.ndarray) -> dict[str, list]:
  counts, edges = np.histogram(active, bins=_BINS, range=(0, active.max()))
  return {"edges": edges.tolist(), "counts": counts.tolist()}


def _contexts(tokenizer, store, index, active, contexts, length) -> list[dict]:
  """The strongest activations, one a window, with the text around them."""
  found, seen = [], set()
  order = np.argsort(-active, kind="stable")
  for row in order:
    window, position = map(int, index[row])
    if active[row] <= 0 or len(found) == contexts:
      break
    if window in seen:
      continue
    seen.add(window)
    tokens = store.tokens[window]
    first = max(0, min(position - 2 * length // 3, len(tokens) - length))
    last = min(first + length, len(tokens))
    shown = np.zeros(last - first, np.float32)
    here = np.flatnonzero(
      (index[:, 0] == window) & (index[:, 1] >= first) & (index[:, 1] < last)
    )
    shown[index[here, 1] - first] = active[here]
    found.append(
      {
        "window": window,
        "pieces": tokenizer.pieces([int(t) for t in tokens[first:last]]),
        "values": [round(float(v), 4) for v in shown],
        "peak": position - first,
      }
    )
  return found


def _logit_effects(lm, sae, chosen) -> np.ndarray | None:
  """Direct effect of each latent's direction on the logits: [C, V].

  d_i through the final norm's gain and the unembedding, less its mean over the
  vocabulary; only residual sites write where the unembedding reads.
  """
  where = sites.parse(sae.config.site)
  if where.kind in ("att", "mlp_in"):
    return np.full((len(chosen), 0), np.nan)
  gain = 1 + lm.params["final_norm"]["scale"].astype(jnp.float32)
  directions = sae.params.w_dec[jnp.asarray(chosen)] * gain[None, :]
  table = lm.params["embedder"]["embedding"]
  return np.asarray(_through(directions, table))


@functools.partial(jax.jit)
def _through(directions, table):
  logits = jnp.einsum(
    "cd,vd->cv", directions, table.astype(jnp.float32), precision="highest"
  )
  return logits - logits.mean(axis=1, keepdims=True)


def _tokens_of(tokenizer, effects: np.ndarray, count: int = 8) -> dict:
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
