"""Simulated against true activations, SAE by SAE (paper, 4.4 and figure 7).

Random latents of each SAE are explained from their strongest contexts; from the
explanation alone their activations on held-out contexts are simulated; the score
is the correlation of the two. Beside it stand an untrained SAE, activations
shuffled over tokens, and explanations shuffled over latents.

Killed at any moment, it goes on with the next latent.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.interpretability import scoring, summary
from gemmascope_jax.studies.interpretability.answers import Answers
from gemmascope_jax.studies.interpretability.contexts import Gathered, Sample
from gemmascope_jax.studies.interpretability.outcomes import (
  Explainer,
  Failure,
  Simulator,
)

STUDY = "interpretability"


class TooExpensiveError(ValueError):
  """The study may cost more than was allowed; nothing was asked yet."""


def run(
  saes: Mapping[str, SAE],
  gather: Callable[[SAE], Gathered],
  explainer: Explainer,
  simulator: Simulator,
  folder: str | os.PathLike,
  *,
  families: Mapping[str, str] | None = None,
  untrained: Collection[str] = (),
  shuffled_explanations: bool = True,
  seed: int = 0,
  most_dollars: float | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Scores every SAE's explanations.

  Args:
    saes: finished SAEs by name, in order.
    gather: the samples of an SAE, such as `gathering.gather` with a store and
      a design filled in.
    explainer: see `outcomes`.
    simulator: see `outcomes`.
    folder: for the answers, so that a kill loses few.
    families: a name for the family of each SAE, to compare families by; None:
      what each was trained as.
    untrained: names of the SAEs that are random-initialised baselines.
    shuffled_explanations: also simulate each latent from the explanation of
      another latent of its SAE; doubles the simulations.
    seed: of the shuffles.
    most_dollars: stop before the first request if the study may cost more, by
      the explainer's and the simulator's own estimates.
    progress: show progress bars.

  Returns:
    {"study": "interpretability", "format": 1, "saes", "families",
    "differences", ...}, JSON-ready; see `summary`.

  Raises:
    ValueError: no SAE, an unknown name among `untrained` or `families`, or
      SAEs none of whose latents fires often enough.
    TooExpensiveError: see `most_dollars`.
  """
  _check_names(saes, families or {}, untrained)
  gathered = {name: gather(sae) for name, sae in saes.items()}
  if not any(found.samples for found in gathered.values()):
    raise ValueError(
      "no latent of any SAE fires in enough contexts to be explained and"
      " tested: use more rows or fewer contexts, or other SAEs"
    )
  cost = _cost(gathered, explainer, simulator, shuffled_explanations)
  if most_dollars is not None:
    _check_cost(cost, most_dollars)
  answers = Answers(explainer, simulator, folder)
  rows = []
  for name, sae in saes.items():
    found = gathered[name]
    family = (families or {}).get(name, sae.config.family)
    latents = _latents(
      name, found.samples, answers, shuffled_explanations, seed, progress
    )
    rows.append(
      {
        "name": name,
        "family": family,
        "kind": summary.UNTRAINED if name in untrained else "sae",
        "site": sae.config.site,
        "width": found.width,
        "alive": found.alive,
        "eligible": found.eligible,
        "tokens": found.tokens,
        **summary.of_latents(latents),
        "latents": latents,
      }
    )
  groups = summary.families(rows)
  return {
    "study": STUDY,
    "format": 1,
    "explainer": explainer.describe(),
    "simulator": simulator.describe(),
    "contexts": _contexts(gathered),
    "seed": seed,
    "saes": rows,
    "families": groups,
    "differences": summary.differences(groups),
    "cost": cost,
    "usage": _usage(explainer, simulator),
  }


def partners(explained: Sequence[bool], seed: int) -> list[int | None]:
  """For each latent another one, whose explanation it gets; None if no other.

  Explanations that there are go round in a circle of random order, so nobody
  keeps its own and each is used once.
  """
  ring = np.flatnonzero(explained)
  out: list[int | None] = [None] * len(explained)
  if len(ring) > 1:
    ring = np.random.default_rng(seed).permutation(ring)
    for one, other in zip(ring, np.roll(ring, 1), strict=True):
      out[int(one)] = int(other)
  return out


def _latents(name, samples, answers, shuffled, seed, progress) -> list[dict]:
  """Explains, simulates and scores the latents of one SAE."""

  def bar(what):
    return tqdm.tqdm(
      total=len(samples),
      desc=f"{what} {name}",
      unit="latent",
      disable=not progress or jax.process_index() > 0,
    )

  with bar("explain") as shown:
    explanations = answers.explanations(
      [sample.shown for sample in samples], tell=shown.update
    )
  explained = [not isinstance(each, Failure) for each in explanations]
  others = partners(explained, seed) if shuffled else [None] * len(samples)
  rows = []
  with bar("simulate") as shown:
    for sample, explanation, other in zip(
      samples, explanations, others, strict=True
    ):
      shown.update()
      if isinstance(explanation, Failure):
        rows.append(scoring.unexplained(sample, explanation))
        continue
      simulated = answers.simulations(explanation, sample.held_out)
      row = scoring.scored(sample, explanation, simulated, seed)
      if other is not None:
        row["shuffled_explanation"] = scoring.with_other_explanation(
          sample,
          samples[other].latent,
          answers.simulations(explanations[other], sample.held_out),
        )
      rows.append(row)
  return rows


def _check_names(saes, families, untrained) -> None:
  if not saes:
    raise ValueError("no SAE: expected at least one, by name")
  unknown = [name for name in (*families, *untrained) if name not in saes]
  if unknown:
    raise ValueError(
      f"{', '.join(map(repr, unknown))} among `untrained` or `families`: no"
      f" such SAE; expected one of {', '.join(map(repr, saes))}"
    )


def _contexts(gathered: Mapping[str, Gathered]) -> dict[str, Any]:
  """What each latent was judged on."""
  sample: Sample = next(s for g in gathered.values() for s in g.samples)
  return {
    "shown": len(sample.shown),
    "held_out": {
      kind: sample.kinds.count(kind) for kind in dict.fromkeys(sample.kinds)
    },
    "length": int(sample.held_out.tokens.shape[1]),
  }


def _cost(gathered, explainer, simulator, shuffled) -> dict[str, Any] | None:
  """What will be asked at most; None if neither costs anything."""
  samples = [s for found in gathered.values() for s in found.samples]
  parts = []
  if hasattr(explainer, "cost"):
    parts.append(explainer.cost(samples))
  if hasattr(simulator, "cost"):
    parts += [simulator.cost(samples)] * (2 if shuffled else 1)
  if not parts:
    return None
  total = parts[0]
  for part in parts[1:]:
    total = total + part
  return dataclasses.asdict(total)


def _check_cost(cost: dict[str, Any] | None, most: float) -> None:
  if cost is None:
    return
  if cost["dollars"] is None:
    raise TooExpensiveError(
      f"most_dollars {most}: the prices are not known; give Prices to the"
      " explainer and the simulator"
    )
  if cost["dollars"] > most:
    raise TooExpensiveError(
      f"the study may cost {cost['dollars']:.2f} dollars"
      f" ({cost['requests']:,} requests, {cost['input_tokens']:,} tokens in,"
      f" at most {cost['output_tokens']:,} out), more than most_dollars"
      f" {most}: use fewer latents or contexts, or allow more"
    )


def _usage(explainer, simulator) -> dict[str, Any] | None:
  """What was asked of endpoints in this run."""
  found = {
    name: part.usage
    for name, part in (("explainer", explainer), ("simulator", simulator))
    if hasattr(part, "usage")
  }
  return found or None
