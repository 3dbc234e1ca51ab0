"""What other viewers read of latents.

`neuronpedia`: the batches of JSON that Neuronpedia's upload takes, as
SAEDashboard writes them. `gemma_scope_2`: `examples.safetensors`, which lies
beside the weights in Gemma Scope 2.

Letters: M latents, D width, E examples of each, S windows of T tokens, V
vocabulary.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from gemmascope_jax import artifacts

FORMATS = ("neuronpedia", "gemma_scope_2")
EXAMPLES_FILE = "examples.safetensors"
_BATCH = 128  # latents of a file
_GROUPS = 5  # intervals of the activation, for contexts below the top
_DIMENSIONS = 3  # of the decoder row that are named
_TOP = -1.0  # what SAEDashboard gives as the interval of top contexts


def neuronpedia(
  out: str | os.PathLike,
  latents: Iterable[Mapping[str, Any]],
  w_dec: np.ndarray,
  *,
  model_id: str,
  layer: int,
  sae_set: str,
  dataset: str,
  windows: tuple[int, int],
) -> list[pathlib.Path]:
  """Writes batches of latents for Neuronpedia.

  What is not measured here (correlations with neurons and between latents,
  other than firing together) is left empty.

  Args:
    out: folder for batch-0.json and so on.
    latents: of `studies.latents.details` with `logit_bins`; taken one by one.
    w_dec: float32 [M, D].
    model_id: Neuronpedia's name of the model, as "gemma-2-2b".
    layer: of the SAE.
    sae_set: Neuronpedia's name of the set, as "gemmascope-res-16k".
    dataset: what the text is.
    windows: (S, T) of the text that was looked at.

  Returns:
    The files.

  Raises:
    ValueError: no latents, or no names.
  """
  if not model_id or not sae_set:
    raise ValueError(
      f"model_id {model_id!r}, sae_set {sae_set!r}: expected Neuronpedia's"
      " names of both"
    )
  files = []
  for number, some in enumerate(_batches(latents)):
    path = pathlib.Path(out) / f"batch-{number}.json"
    artifacts.write_json(
      path,
      {
        "model_id": model_id,
        "layer": layer,
        "sae_set": sae_set,
        "features": [
          _feature(latent, w_dec[latent["index"]], dataset, windows)
          for latent in some
        ],
      },
    )
    files.append(path)
  if not files:
    raise ValueError("no latents to write: expected at least one")
  return files


def _batches(latents) -> Iterator[list]:
  some: list = []
  for latent in latents:
    some.append(latent)
    if len(some) == _BATCH:
      yield some
      some = []
  if some:
    yield some


def _feature(latent, direction, dataset: str, windows) -> dict[str, Any]:
  """One latent under Neuronpedia's names."""
  size = np.abs(direction).astype(np.float64)
  order = np.argsort(-size, kind="stable")[:_DIMENSIONS]
  activations, logits = latent["histogram"], latent["logit_histogram"]
  split = lambda pairs: (
    [piece for piece, _ in pairs],
    [float(value) for _, value in pairs],
  )
  positive, negative = (
    split(latent[key]) for key in ("top_logits", "bottom_logits")
  )
  return {
    "feature_index": latent["index"],
    "neuron_alignment_indices": [int(i) for i in order],
    "neuron_alignment_values": [float(direction[i]) for i in order],
    "neuron_alignment_l1": [float(size[i] / size.sum()) for i in order],
    "correlated_neurons_indices": [],
    "correlated_neurons_l1": [],
    "correlated_neurons_pearson": [],
    "correlated_features_indices": [],
    "correlated_features_l1": [],
    "correlated_features_pearson": [],
    "neg_str": negative[0],
    "neg_values": negative[1],
    "pos_str": positive[0],
    "pos_values": positive[1],
    "frac_nonzero": latent["frequency"],
    "freq_hist_data_bar_values": _middles(activations["edges"]),
    "freq_hist_data_bar_heights": [float(n) for n in activations["counts"]],
    "logits_hist_data_bar_values": _middles(logits["edges"]),
    "logits_hist_data_bar_heights": [float(n) for n in logits["counts"]],
    "n_prompts_total": windows[0],
    "n_tokens_in_prompt": windows[1],
    "dataset": dataset,
    "decoder_weights_dist": [],
    "activations": [
      *(_activation(each, _TOP, _TOP, _TOP) for each in latent["contexts"]),
      *_at_intervals(latent),
    ],
  }


def _at_intervals(latent) -> Iterator[dict[str, Any]]:
  """The other contexts, with the interval of the activation at their peak.

  Intervals are a fifth of the histogram's bins each, so that what they contain
  is exact.
  """
  edges, counts = (
    np.asarray(latent["histogram"][key]) for key in ("edges", "counts")
  )
  if not len(counts):
    return
  firsts = np.unique(np.linspace(0, len(counts), _GROUPS + 1).astype(int))
  for context in latent["quantile_contexts"]:
    peak = context["values"][context["peak"]]
    place = int(np.searchsorted(edges[firsts], peak, side="right")) - 1
    place = min(max(place, 0), len(firsts) - 2)
    low, high = firsts[place], firsts[place + 1]
    yield _activation(
      context, edges[low], edges[high], counts[low:high].sum() / counts.sum()
    )


def _activation(context, low, high, contains) -> dict[str, Any]:
  return {
    "bin_min": float(low),
    "bin_max": float(high),
    "bin_contains": float(contains),
    "tokens": list(context["pieces"]),
    "values": [float(value) for value in context["values"]],
  }


def _middles(edges) -> list[float]:
  return [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]


def gemma_scope_2(
  out: str | os.PathLike, arrays: Mapping[str, np.ndarray]
) -> pathlib.Path:
  """Writes `examples.safetensors`.

  Args:
    out: the folder.
    arrays: of `examples` and `extremes`. Gemma Scope 2's `logit_effects` is
      left out: what its numbers are is not said anywhere that we know.

  Returns:
    The file.
  """
  path = pathlib.Path(out) / EXAMPLES_FILE
  artifacts.write_bytes(path, safetensors.save(dict(arrays)))
  return path


def examples(found, store) -> dict[str, np.ndarray]:
  """Where each latent is strongest, under Gemma Scope 2's names.

  Args:
    found: of `studies.latents.gather`, with E contexts.
    store: what it was gathered from.

  Returns:
    activations: float32 [M, E], greatest first; 0 where there is none.
    positions: int32 [M, E], in the window; -1 where there is none.
    seq_ids: int64 [M, E], the window; -1 where there is none.
    tokens: int32 [S, T], the windows.
    feature_frequencies: float64 [M].
  """
  rows = found.strongest.rows
  there = rows >= 0
  places = np.full((*rows.shape, 2), -1, np.int64)
  numbers, back = np.unique(rows[there], return_inverse=True)
  if len(numbers):
    index = np.asarray(store.index(0, int(numbers[-1]) + 1))
    places[there] = index[numbers][back]
  return {
    "activations": found.strongest.values.astype(np.float32),
    "positions": places[..., 1].astype(np.int32),
    "seq_ids": places[..., 0].copy(),
    "tokens": np.asarray(store.tokens, np.int32),
    "feature_frequencies": found.frequencies.frequency.astype(np.float64),
  }


def extremes(
  effects: Iterable[np.ndarray], count: int = 10
) -> dict[str, np.ndarray]:
  """The tokens that latents promote and suppress most, under those names.

  Args:
    effects: of `studies.latents.logit_effects`, of all latents in order.
    count: tokens of each.

  Returns:
    top_logits and bottom_logits, float32 [M, count]; top_tokens and
    bottom_tokens, int32 [M, count]; nothing, if latents have no direct effect.
  """
  found: dict[str, list] = {
    "top_logits": [],
    "top_tokens": [],
    "bottom_logits": [],
    "bottom_tokens": [],
  }
  for effect in effects:
    if not effect.size:
      return {}
    for name, sign in (("top", -1), ("bottom", 1)):
      order = np.argpartition(sign * effect, count)[:count]
      order = order[np.lexsort((order, sign * effect[order]))]
      found[f"{name}_logits"].append(effect[order])
      found[f"{name}_tokens"].append(order)
  return {
    name: np.array(each, np.int32 if name.endswith("tokens") else np.float32)
    for name, each in found.items()
  }
