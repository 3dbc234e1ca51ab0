"""The instruct study from a config: the tuned model, its rollouts, the SAEs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from gemmascope_jax.data.tokens import packing, prompts, rollouts
from gemmascope_jax.data.tokens.chat import ChatTemplate
from gemmascope_jax.experiment import settings
from gemmascope_jax.experiment.bench import Bench
from gemmascope_jax.gemma import sites
from gemmascope_jax.studies import instruct, measure, site_means
from gemmascope_jax.studies.findings import Finding
from gemmascope_jax.studies.instruct import BASE, RESCALED, TUNED, Rescaled

_ROLLOUTS = "rollouts"


def run(bench: Bench) -> tuple[dict[str, Any], list[Finding]]:
  """SAEs of the bench's model and of `studies.instruct`'s, on its rollouts.

  Sites are those of the tuned model's SAEs, if there are any.

  Raises:
    ValueError: a tuned SAE of another model, or a tuned model that differs from
      the base in more than its weights.
  """
  config, options = bench.config, bench.config.studies.instruct
  tuned_config = config.copy_and_resolve_references()
  tuned_config.lm.source = options.source or config.lm.source
  tuned_config.lm.delta = options.delta
  lm = settings.load_lm(tuned_config)
  if lm.tokenizer.fingerprint != bench.lm.tokenizer.fingerprint:
    raise ValueError(
      f"{lm.label} has another tokenizer than {bench.lm.label}: expected a"
      " tuned model of this base"
    )
  policy = packing.default_policy(lm.tokenizer, ChatTemplate.of(lm.tokenizer))
  said = rollouts.rollouts(
    lm,
    prompts.read(
      options.prompts,
      options.prompt_count,
      folder=config.data.packages or None,
      held_out=config.data.held_out,
    ),
    max_new_tokens=options.new_tokens,
    temperature=options.temperature,
    seed=config.seed,
    per_prompt=options.per_prompt,
    turns=options.turns or None,
    batch=config.evaluate.batch,
    folder=settings.workdir(config) / _ROLLOUTS,
    source=options.prompts,
    progress=config.progress,
  )
  subjects = _subjects(bench, lm, policy)
  masks = {
    "rollout": said.rollout & policy.keep(said.tokens),
    "prompt": said.prompt & policy.keep(said.tokens),
  }
  rows, records, spliced, factors = [], {}, {}, {}
  for site, members in subjects.items():
    factor = _factor(bench, lm, site, said.tokens, masks)
    replacements = {}
    for trained_on, one in members:
      row = one.describe() | {"trained_on": trained_on, "rescaled": False}
      replacements[one.name] = one.replacement()
      rows.append(row)
      if trained_on == BASE:
        name = one.name + RESCALED
        inner = replacements[one.name]
        replacements[name] = Rescaled(inner, jnp.float32(factor))
        rows.append(row | {"name": name, "rescaled": True})
    mean = site_means.means(
      lm,
      [site],
      said.tokens,
      policy,
      bench.folder,
      batch=config.evaluate.batch,
      progress=config.progress,
    )[site]
    record, spliced[site] = measure.measure(
      lm,
      site,
      replacements,
      said.tokens,
      policy,
      mean,
      bench.folder,
      batch=config.evaluate.batch,
      progress=config.progress,
    )
    sums = _sums(bench, lm, site, said.tokens, masks, mean)
    records[site] = {
      name: instruct.part(record, _role(said, name), sums[name][0])
      for name in instruct.PARTS
    }
    factors[site] = factor
  found = instruct.result(rows, records, spliced, said.about, factors)
  found["tokens"] = {
    "sequences": len(said.tokens),
    "length": int(said.tokens.shape[1]),
    "counted": int(sum(mask.sum() for mask in masks.values())),
    "split": "rollouts",
    "sources": [options.prompts],
  }
  found["model"] = {
    "label": lm.label,
    "weights_hash": lm.weights_hash,
    "tokenizer": lm.tokenizer.fingerprint,
    "base": bench.lm.label,
  }
  return found, instruct.findings(found)


def _role(said: rollouts.Rollouts, name: str) -> np.ndarray:
  return said.rollout if name == "rollout" else said.prompt


def _subjects(bench: Bench, lm, policy) -> dict[str, list]:
  """(BASE or TUNED, SAE) of each site."""
  for one in bench.tuned:
    one.check(lm, policy)
  where = {one.site for one in bench.tuned}
  base = bench.subjects if where else bench.chosen()
  found: dict[str, list] = {}
  for trained_on, every in (
    (BASE, [one for each in base.values() for one in each]),
    (TUNED, bench.tuned),
  ):
    for one in every:
      if not one.is_transcoder and (not where or one.site in where):
        found.setdefault(one.site, []).append((trained_on, one))
  return found


def _sums(bench, lm, site, tokens, masks, shift):
  return site_means.sums(
    lm,
    site,
    tokens,
    masks,
    shift,
    bench.folder,
    pad_id=lm.tokenizer.pad_id,
    batch=bench.config.evaluate.batch,
  )


def _factor(bench: Bench, lm, site, tokens, masks) -> float:
  """Base norm over tuned norm, on all that counts of the rollouts."""
  whole = {"all": np.logical_or.reduce(list(masks.values()))}
  zero = np.zeros(sites.site_width(lm.config, site))
  base, tuned = (
    _sums(bench, each, site, tokens, whole, zero)["all"][1].sum()
    for each in (bench.lm, lm)
  )
  return float(np.sqrt(base / tuned))
