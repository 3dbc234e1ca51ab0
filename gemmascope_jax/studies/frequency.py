"""How often latents fire: the paper's figure 5 for one's own SAEs (4.3).

The firing frequency of a latent is the share of counted tokens on which it is
active. A result says how log10 of it is distributed over the latents of each
SAE, how many never fired, and how many fire on more than 1 % and 10 % of all
tokens: the paper finds a cluster of such dense latents at every width, as in
TopK SAEs and unlike in Gated ones.

N tokens can't tell a latent that fires once in ten N tokens from one that
never does: "dead" is "not once on N tokens", and says N.

Letters: M latents.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies import activity
from gemmascope_jax.studies.activity.sample import BLOCK
from gemmascope_jax.studies.findings import (
  AGREES,
  DISAGREES,
  UNCLEAR,
  Finding,
)

STUDY = "frequency"
# log10 of the frequency, tenths of a decade; the same for every SAE, so that
# histograms can be compared and added.
EDGES = np.linspace(-8, 0, 81)
DENSE, VERY_DENSE = 0.01, 0.1
_SMOOTH = 0.15  # decades, of the kernel with which the mode is found
_DENSE_CLUSTER = "fire on more than 10 % of tokens"


def run(
  saes: Mapping[str, SAE],
  store,
  site: str,
  *,
  rows: int | None = None,
  arrays: str | os.PathLike | None = None,
  block: int = BLOCK,
  progress: bool = True,
) -> dict[str, Any]:
  """Counts on which tokens latents fire, all SAEs in one pass.

  Args:
    saes: SAEs of the site by name, in the order in which to show them.
    store: activations with their tokens.
    site: where.
    rows: rows of the store, from its first; None: all.
    arrays: an `.npz` to write every latent's frequency into, see
      `write_arrays`; None: no file.
    block: rows at a time; of no effect on the result.
    progress: show a progress bar.

  Returns:
    {"study": "frequency", "format": 1, ...}, see `summarise`.

  Raises:
    ValueError: SAEs of another site or width, or no rows.
  """
  sample = activity.Sample.of(store, site, rows)
  sample.require_saes(saes)
  on_device = {
    name: activity.entries.on_device(sae) for name, sae in saes.items()
  }
  firing = {
    name: activity.Firing(sae.width, sample) for name, sae in saes.items()
  }
  for each in sample.blocks("firing frequencies", block, progress):
    for name, sae in on_device.items():
      firing[name].add(activity.active(sae, each.x), each)
  found = {name: each.finish() for name, each in firing.items()}
  result = summarise(saes, found, site)
  if arrays is not None:
    write_arrays(arrays, found)
    result["arrays"] = pathlib.Path(arrays).name
  return result


def summarise(
  saes: Mapping[str, SAE],
  found: Mapping[str, activity.Frequencies],
  site: str,
) -> dict[str, Any]:
  """The result of frequencies that were counted already.

  Args:
    saes: by name.
    found: of each, as `run` or `activity.collect` count them.
    site: where.

  Returns:
    A JSON-ready result: "bins", the edges of log10 frequency; of each SAE the
    "histogram" over them of latents that fired, "dead", "dense" and
    "very_dense" (shares of all latents: never, above 1 %, above 10 %), the
    "median" and "mode" of log10 frequency, "l0"; numbers with standard errors
    over windows, see `activity.resampling` where they are no ratio.
  """
  first = next(iter(found.values()))
  return {
    "study": STUDY,
    "format": 1,
    "site": site,
    "tokens": {"counted": first.rows, "sequences": first.windows},
    "bins": EDGES.round(3).tolist(),
    "saes": [
      describe_sae(name, sae) | describe(found[name])
      for name, sae in saes.items()
    ],
  }


def describe(found: activity.Frequencies) -> dict[str, Any]:
  """The numbers of one SAE, JSON-ready; see `summarise`."""
  return {
    "l0": found.l0().to_dict(),
    "dead": found.estimate(share_dead).to_dict(),
    "dense": found.estimate(lambda f: share_above(f, DENSE)).to_dict(),
    "very_dense": found.estimate(
      lambda f: share_above(f, VERY_DENSE)
    ).to_dict(),
    "very_dense_latents": int((found.frequency > VERY_DENSE).sum()),
    "median": _or_none(found, median),
    "mode": _or_none(found, mode),
    "histogram": histogram(found.frequency).tolist(),
  }


def describe_sae(name: str, sae: SAE) -> dict[str, Any]:
  """What an SAE is, JSON-ready."""
  recipe = sae.config.details().get("recipe", {})
  return {
    "name": name,
    "family": sae.config.family,
    "width": sae.width,
    "sparsity_coefficient": recipe.get("sparsity_coefficient"),
  }


def histogram(frequency: np.ndarray) -> np.ndarray:
  """Latents that fired by log10 frequency: int64 [80], over `EDGES`.

  Those below the lowest edge count in the lowest bin.
  """
  logs = np.log10(frequency[frequency > 0])
  return np.histogram(np.maximum(logs, EDGES[0]), EDGES)[0]


def share_dead(frequency: np.ndarray) -> float:
  """Share of latents that never fired."""
  return float((frequency == 0).mean())


def share_above(frequency: np.ndarray, least: float) -> float:
  """Share of latents that fire on more than this share of tokens."""
  return float((frequency > least).mean())


def median(frequency: np.ndarray) -> float:
  """Median of log10 frequency over latents that fired; NaN if none did."""
  fired = frequency[frequency > 0]
  return float(np.median(np.log10(fired))) if len(fired) else float("nan")


def mode(frequency: np.ndarray) -> float:
  """Where log10 frequency is most common; NaN if no latent fired.

  The histogram is smoothed by a Gaussian of 0.15 decades first: single bins
  are noise, and at the rare end they hold one count or none.
  """
  counts = histogram(frequency).astype(np.float64)
  if not counts.any():
    return float("nan")
  middles = (EDGES[1:] + EDGES[:-1]) / 2
  points = np.linspace(EDGES[0], EDGES[-1], 1601)
  kernel = np.exp(-0.5 * ((points[:, None] - middles[None]) / _SMOOTH) ** 2)
  return float(points[(kernel @ counts).argmax()])


def _or_none(found: activity.Frequencies, statistic) -> dict | None:
  """A statistic of the latents that fired; None if none did."""
  whole = found.estimate(statistic)
  if not np.isfinite(whole.mean):
    return None
  return whole.to_dict()


def write_arrays(
  path: str | os.PathLike, found: Mapping[str, activity.Frequencies]
) -> None:
  """Writes "NAME|frequency" and "NAME|stderr", float32 [M], of each SAE."""
  arrays = {}
  for name, each in found.items():
    arrays[f"{name}|frequency"] = each.frequency.astype(np.float32)
    arrays[f"{name}|stderr"] = each.stderr.astype(np.float32)
  with artifacts.atomic_write(path) as file:
    np.savez(file, **arrays)


def findings(result: dict[str, Any]) -> list[Finding]:
  """The paper's findings on firing frequencies against this result."""
  found = [dense_cluster(result["saes"])]
  gated = [sae for sae in result["saes"] if sae["family"] == "gated"]
  others = [
    sae
    for sae in result["saes"]
    if sae["family"] in ("jumprelu", "topk", "batch_topk")
  ]
  if gated and others:
    found.append(_fewer_in_gated(gated, others))
  return found


def dense_cluster(saes: list[dict[str, Any]]) -> Finding:
  """Whether a cluster of very frequent latents is there in every SAE."""
  shown = [
    sae for sae in saes if sae["family"] in ("jumprelu", "topk", "batch_topk")
  ] or saes
  seen = "; ".join(
    f"{sae['name']}: {sae['very_dense_latents']} of {sae['width']:,} latents"
    f" ({_percent(sae['very_dense'])})"
    for sae in shown
  )
  there = [_above_zero(sae["very_dense"]) for sae in shown]
  verdict = DISAGREES
  if any(sae["very_dense"]["stderr"] is None for sae in shown):
    verdict = UNCLEAR  # one sequence: no error, and nothing to judge by
  elif all(there):
    verdict = AGREES
  return Finding(
    figure="5",
    claim=f"At every width a cluster of latents {_DENSE_CLUSTER}.",
    seen=f"{seen}, on {shown[0]['l0']['n']:,} sequences.",
    verdict=verdict,
  )


def _fewer_in_gated(gated, others) -> Finding:
  mean = lambda rows: float(np.mean([r["very_dense"]["mean"] for r in rows]))
  error = lambda rows: (
    float(np.sqrt(sum((r["very_dense"]["stderr"] or 0) ** 2 for r in rows)))
    / len(rows)
  )
  difference = mean(others) - mean(gated)
  stderr = float(np.hypot(error(others), error(gated)))
  verdict = UNCLEAR
  known = all(row["very_dense"]["stderr"] is not None for row in gated + others)
  if known and abs(difference) > 2 * stderr:
    verdict = AGREES if difference > 0 else DISAGREES
  return Finding(
    figure="5",
    claim=f"Fewer latents of Gated SAEs {_DENSE_CLUSTER} than of others.",
    seen=(
      f"{mean(gated):.2%} of latents in Gated SAEs, {mean(others):.2%} in"
      f" JumpReLU and TopK SAEs: {difference:+.2%} ± {stderr:.2%}."
    ),
    verdict=verdict,
  )


def _above_zero(value: dict[str, Any]) -> bool:
  return value["mean"] > 2 * (value["stderr"] or 0) and value["mean"] > 0


def _percent(value: dict[str, Any]) -> str:
  error = "?" if value["stderr"] is None else f"{value['stderr'] * 100:.2g}"
  return f"{value['mean'] * 100:.3g} ± {error} %"
