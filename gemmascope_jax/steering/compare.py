"""Ways to steer against each other: effect against loss of fluency.

Whether SAE latents steer better than plain difference vectors is among the
paper's open problems (section 5). Each method is tried at several strengths;
all say answers to the same prompts with the same randomness, so differences
are paired by prompt (and of held-out text by sequence).

`budget` says what each method achieves when it may cost so much.

Letters: Q prompts, S held-out sequences, T tokens.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.sae.sae import SAE, weights_hash
from gemmascope_jax.steering import budget, generation, measures
from gemmascope_jax.steering.budget import COSTS, Measured, change, value
from gemmascope_jax.steering.edits import Edit, as_partial
from gemmascope_jax.steering.methods import Method
from gemmascope_jax.studies import parts

STUDY = "steering"
WORDS, LATENT = "words", "latent"
# Nats a token; a choice, not a law.
BUDGETS = {"text_loss": 0.5, "held_out_loss": 0.25}
_SHOWN = 3  # answers in the result, for people


def compare(
  lm,
  methods: Sequence[Method],
  prompts: Sequence[str],
  tokens: np.ndarray,
  policy: TokenPolicy,
  *,
  words: Sequence[str] = (),
  sae: SAE | None = None,
  latent: int | None = None,
  samples: int = 4,
  max_new_tokens: int = 32,
  temperature: float = 1.0,
  seed: int = 0,
  positions: str = "all",
  budgets: Mapping[str, float] | None = None,
  batch: int = 16,
  folder: str | os.PathLike | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Measures every method at every strength, and the model without edits.

  Args:
    lm: a `Gemma` with all its layers.
    methods: see `methods`; each of another name.
    prompts: at least two, which say nothing of the concept.
    tokens: int32 [S, T], held-out text that nobody steered, BOS first.
    policy: where edits act and what counts.
    words: the concept's; the share of answers with one of them is the effect.
    sae: with `latent`: the share of tokens said on which it fires, read by the
      model without edits, is an effect too (the first one without words). It
      favours methods that were made from this latent.
    latent: see there.
    samples: answers to each prompt.
    max_new_tokens: of an answer.
    temperature: of the sampling.
    seed: of the sampling.
    positions: see `generation.generate`; held-out text is edited everywhere.
    budgets: nats a token that the methods may cost, by cost; None: `BUDGETS`.
    batch: answers, and sequences, at a time.
    folder: where measurements are kept, so that a killed comparison goes on;
      None: nowhere.
    progress: show a progress bar.

  Returns:
    JSON-ready, {"study": "steering", "format": 1, ...}: "effects" (names, the
    first is the one chosen by), "unsteered" and "rows", of each method and
    strength every metric of `measures` as {"mean", "stderr", "n", "change"},
    the change being the paired difference to the model without edits, None
    where nothing counts; "at_budget", see the module; what was asked, and
    some answers.

  Raises:
    ValueError: no effect to measure, fewer than two prompts, methods of the
      same name or none, an unknown budget; and what generating refuses.
    FloatingPointError: a loss that is no number under some strength.
  """
  budgets = dict(BUDGETS if budgets is None else budgets)
  tokens = np.asarray(tokens)
  _check(lm, methods, prompts, tokens, words, sae, latent, budgets)
  effects = [WORDS] * bool(words) + [LATENT] * (latent is not None)
  asked = {
    "prompts": list(prompts),
    "words": list(words),
    "samples": samples,
    "max_new_tokens": max_new_tokens,
    "temperature": temperature,
    "seed": seed,
    "positions": positions,
  }
  key = [
    asked,
    lm.weights_hash,
    str(jax.tree.leaves(lm.params)[0].dtype),
    artifacts.code_version(),
    artifacts.sha256_arrays([tokens]),
    policy,
    latent,
    None if sae is None else weights_hash(sae),
  ]

  def measured(edits: Mapping[str, Edit], about: Sequence) -> Measured:
    return parts.cached(
      _path(folder, [key, *about], edits),
      lambda: _measure(
        lm,
        edits,
        prompts,
        tokens,
        policy,
        asked,
        words,
        (sae, latent),
        batch,
      ),
    )

  settings = [(m, s) for m in methods for s in m.strengths]
  bar = tqdm.tqdm(
    total=1 + len(settings),
    desc="steer",
    unit="strength",
    disable=not progress or jax.process_index() > 0,
  )
  plain = measured({}, [])
  bar.update()
  found = {}
  for method, strength in settings:
    about = [method.name, method.about, strength]
    one = measured(method.edits(strength), about)
    found[method.name, strength] = one
    bar.update()
    if not np.isfinite(one["held_out_loss"]).all():
      raise FloatingPointError(
        f"the held-out loss under {method.name!r} at strength {strength:g} is"
        " not a number: the push is larger than the model's arithmetic holds;"
        " leave this strength out"
      )
  bar.close()
  return {
    "study": STUDY,
    "format": 1,
    "effects": effects,
    "latent": latent,
    "asked": asked,
    "budgets": budgets,
    "methods": [
      {
        "name": method.name,
        "about": method.about,
        "sites": sorted(method.edits(method.strengths[0])),
        "strengths": list(method.strengths),
      }
      for method in methods
    ],
    "unsteered": _row(plain, plain, effects),
    "rows": [
      {"method": method.name, "strength": strength}
      | _row(found[method.name, strength], plain, effects)
      for method, strength in settings
    ],
    "at_budget": [
      budget.at_budget(
        method.name, found, plain, effects[0], cost, most, methods[0].name
      )
      for cost, most in budgets.items()
      for method in methods
    ],
  }


def _check(lm, methods, prompts, tokens, words, sae, latent, budgets) -> None:
  names = [method.name for method in methods]
  if not names or len(set(names)) < len(names):
    raise ValueError(
      f"methods {names}: expected at least one, each of another name"
    )
  if isinstance(prompts, str) or len(prompts) < 2:
    raise ValueError(
      f"prompts {prompts!r}: expected a list of at least two, as one half"
      " chooses strengths for the other"
    )
  wrong = tokens[(tokens < 0) | (tokens >= lm.config.vocab_size)]
  if tokens.ndim != 2 or wrong.size:
    raise ValueError(
      f"{f'id {wrong.max()}' if wrong.size else tokens.shape} among the held-out"
      f" tokens: expected [sequences, tokens]; {lm.label} has ids"
      f" 0..{lm.config.vocab_size - 1}"
    )
  if (sae is None) != (latent is None):
    raise ValueError("sae and latent belong together: expected both or neither")
  if not words and latent is None:
    raise ValueError(
      "no effect to measure: expected words of the concept, or sae and latent"
    )
  if words:
    measures.has_words([], words)
  for cost, most in budgets.items():
    if cost not in COSTS or not (np.isfinite(most) and most >= 0):
      raise ValueError(
        f"budget {most!r} of {cost!r}: expected nats a token, 0 or more, of"
        f" {' or '.join(COSTS)}"
      )


def _path(folder, key, edits) -> pathlib.Path | None:
  """Named by everything that a measurement depends on."""
  if folder is None:
    return None
  numbers = {
    site: artifacts.sha256_arrays(jax.tree.leaves(as_partial(edit)))
    for site, edit in edits.items()
  }
  name = artifacts.fingerprint([key, numbers])
  return pathlib.Path(folder) / f"{name}.npz"


def _measure(
  lm, edits, prompts, tokens, policy, asked, words, of_latent, batch
) -> Measured:
  """Of each metric float64 [2, Q] or [2, S], sums and weights; and answers."""
  said = generation.generate(
    lm,
    prompts,
    edits or None,
    max_new_tokens=asked["max_new_tokens"],
    temperature=asked["temperature"],
    seed=asked["seed"],
    samples=asked["samples"],
    positions=asked["positions"],
    policy=policy,
    batch=batch,
  )
  count, sae_and_latent = len(prompts), of_latent
  found = {
    "text_loss": measures.text_losses(lm, said, policy, count, batch=batch),
    "repetition": measures.repetitions(said, count),
    "held_out_loss": measures.held_out_losses(
      lm, tokens, policy, edits, batch=batch
    ),
  }
  if words:
    found[WORDS] = measures.word_hits(said, words, count)
  if of_latent[0] is not None:
    found[LATENT] = measures.latent_hits(
      lm, *sae_and_latent, said, policy, count, batch=batch
    )
  found = {name: np.stack(sums) for name, sums in found.items()}
  return found | {"texts": np.array(said.texts)}


def _row(one: Measured, plain: Measured, effects) -> dict[str, Any]:
  row: dict[str, Any] = {}
  for name in (*effects, *COSTS, "repetition"):
    found, rise = value(one, name), change(one, plain, name)
    row[name] = None
    if found is not None:
      row[name] = found.to_dict() | {"change": rise and rise.to_dict()}
  texts = one["texts"]
  row["answers"] = texts[:: max(1, len(texts) // _SHOWN)][:_SHOWN].tolist()
  return row
