"""The study of latents that persist: SAEs of a few layers on common rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.circuits import persistent
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.width import matching

STUDY = "persistent"
_EDGES = np.linspace(-0.2, 1, 61)


def run(
  saes: Mapping[str, SAE],
  store=None,
  *,
  rows: int | None = 50_000,
  alpha: float = 0.01,
  least: int = 10,
  seed: int = 0,
  same_number: bool = False,
  path: str | os.PathLike | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Matches each SAE with the next one, and follows chains of matches.

  Args:
    saes: by name, each of another layer's `res` site; they are taken in the
      order of their layers.
    store: activations of all their sites; None: by direction alone.
    rows: of the store to look at; None: all.
    alpha: see `persistent.match`.
    least: see `persistent.match`.
    seed: of the draws of chance.
    same_number: see `persistent.match`.
    path: an npz file for the partners of each latent; None: none is written.
    progress: show a progress bar.

  Returns:
    JSON-ready: "saes"; "steps", of each pair of neighbours the shares that
    match by each criterion, their false rates, the thresholds and histograms of
    scores; "survival", by criterion, the shares of the first SAE's latents that
    are still there at each site, and "chance", the product of the steps' false
    rates.

  Raises:
    ValueError: fewer than two SAEs, two of one layer, one that is not of a
      residual stream; and what `match` raises.
  """
  names = _ordered(saes)
  codes = _codes(names, saes, store, rows, progress)
  steps, matchings = [], []
  for one, other in zip(names, names[1:], strict=False):
    found = persistent.match(
      np.asarray(saes[one].params.w_dec),
      np.asarray(saes[other].params.w_dec),
      None if codes is None else (codes[one], codes[other]),
      alpha=alpha,
      least=least,
      seed=seed,
      same_number=same_number,
    )
    matchings.append(found)
    steps.append(_step(one, other, found))
  criteria = list(matchings[0].partners)
  if path is not None:
    _write(path, names, matchings)
  return {
    "study": STUDY,
    "format": 1,
    "code": artifacts.code_version(),
    "alpha": alpha,
    "least": least,
    "rows": None if codes is None else int(codes[names[0]].shape[0]),
    "criteria": criteria,
    "saes": [
      {
        "name": name,
        "site": saes[name].config.site,
        "width": saes[name].width,
      }
      for name in names
    ],
    "steps": steps,
    "survival": {
      criterion: [
        each.to_dict()
        for each in persistent.survival(
          [m.partners[criterion] for m in matchings], matchings[0].alive
        )
      ]
      for criterion in criteria
    },
    "chance": {
      criterion: np.cumprod(
        [1.0] + [m.false[criterion].mean for m in matchings]
      ).tolist()
      for criterion in criteria
    },
  }


def _ordered(saes) -> list[str]:
  if len(saes) < 2:
    raise ValueError(f"{len(saes)} SAEs: expected at least two, of two layers")
  layers = {}
  for name, sae in saes.items():
    site = sae.config.site and sites.parse(sae.config.site)
    if not site or site.kind != "res" or sae.config.target_site:
      raise ValueError(
        f"SAE {name!r} is of {sae.config.site}: expected one of a residual"
        " stream, as res.5, whose directions later layers share"
      )
    if site.layer in layers:
      raise ValueError(
        f"SAEs {layers[site.layer]!r} and {name!r} are both of {site}: give one"
        " a layer"
      )
    layers[site.layer] = name
  return [layers[layer] for layer in sorted(layers)]


def _codes(names, saes, store, rows, progress):
  """Where each SAE's latents fire, by name, on the same rows."""
  if store is None:
    return None
  return {
    name: matching.firing(saes[name], store, rows, name, progress)
    for name in names
  }


def _step(one, other, found) -> dict[str, Any]:
  scores = {}
  for criterion, pairs in found.pairs.items():
    count = lambda each: np.histogram(
      np.clip(each.score[np.isfinite(each.score)], _EDGES[0], _EDGES[-1]),
      _EDGES,
    )[0].tolist()
    scores[criterion] = {
      "edges": _EDGES.tolist(),
      "real": count(pairs),
      "chance": count(found.chance[criterion]),
    }
  return {
    "first": one,
    "second": other,
    "alive": [int(found.alive.sum()), int(found.alive_second.sum())],
    "thresholds": found.thresholds,
    "shares": {name: found.share(name).to_dict() for name in found.partners},
    "same_number": found.same_number,
    "false": {name: each.to_dict() for name, each in found.false.items()},
    "scores": scores,
  }


def _write(path, names, matchings) -> None:
  arrays = {}
  for one, other, found in zip(names, names[1:], matchings, strict=False):
    prefix = f"{one}|{other}|"
    for criterion, partner in found.partners.items():
      arrays[f"{prefix}{criterion}|partner"] = partner.astype(np.int32)
    for criterion, pairs in found.pairs.items():
      arrays[f"{prefix}{criterion}|score"] = pairs.score.astype(np.float32)
  with artifacts.atomic_write(path) as file:
    np.savez(file, **arrays)
