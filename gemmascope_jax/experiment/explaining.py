"""Who explains latents and who simulates them, from the config."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.studies import interpretability
from gemmascope_jax.studies.interpretability import rating_sheet, ratings

STATISTICS, LM, CHAT = "statistics", "lm", "chat"
_EXPLANATION = 24  # tokens
_ROUND = 64  # prompts are padded to a multiple: few compilations


def judges(config: Config, lm, folder: pathlib.Path) -> tuple[Any, Any]:
  """The explainer and the simulator of `config.studies`.

  Args:
    config: "statistics" of tokens need no model; "lm" is `lm` itself; "chat" is
      behind an OpenAI-compatible endpoint.
    lm: the language model under study.
    folder: for the endpoint's answers.

  Raises:
    ValueError: another word, explanations that the simulator can't read, or an
      endpoint without address or model.
  """
  options = config.studies
  for name in ("explainer", "simulator"):
    if options[name] not in (STATISTICS, LM, CHAT):
      raise ValueError(
        f"studies.{name} is {options[name]!r}; expected {STATISTICS}, {LM} or"
        f" {CHAT}"
      )
  if (options.explainer == STATISTICS) != (options.simulator == STATISTICS):
    raise ValueError(
      f"studies.explainer is {options.explainer}, studies.simulator"
      f" {options.simulator}: statistics of tokens are no text, so expected both"
      " or neither"
    )
  if options.explainer == STATISTICS:
    both = interpretability.TokenStatistics(tokenizer=lm.tokenizer)
    return both, both
  endpoint = None
  if CHAT in (options.explainer, options.simulator):
    endpoint = _endpoint(options, folder)
  batch = config.evaluate.batch
  explainer = (
    interpretability.ChatExplainer(endpoint, lm.tokenizer, _prices(options))
    if options.explainer == CHAT
    else interpretability.LMExplainer(
      lambda prompts: generate(lm, prompts, batch), lm.tokenizer, lm.label
    )
  )
  simulator = (
    interpretability.ChatSimulator(endpoint, lm.tokenizer, _prices(options))
    if options.simulator == CHAT
    else interpretability.LMSimulator(lm, batch)
  )
  return explainer, simulator


def _endpoint(options, folder) -> interpretability.ChatEndpoint:
  if not (options.chat_url and options.chat_model):
    raise ValueError(
      f"studies.chat_url is {options.chat_url!r}, studies.chat_model"
      f" {options.chat_model!r}: expected the address of an OpenAI-compatible"
      " endpoint, such as https://api.openai.com/v1, and the name of a model"
      " there; its key comes from the environment variable OPENAI_API_KEY"
    )
  return interpretability.ChatEndpoint(
    options.chat_url,
    options.chat_model,
    cache=folder / "chat",
    requests_per_minute=options.chat_requests_per_minute,
  )


def _prices(options) -> interpretability.Prices | None:
  dollars = tuple(options.chat_dollars_per_million)
  return interpretability.Prices(*dollars) if dollars else None


def people(
  config: Config, result, samples, tokenizer, folder: pathlib.Path
) -> dict[str, Any] | None:
  """Writes a sheet for people's ratings, and counts those that came back.

  Args:
    config: `studies.rated_latents` and `studies.ratings`.
    result: of `interpretability.run`.
    samples: of each of its SAEs, as they were gathered.
    tokenizer: of the contexts.
    folder: of the sheet and its key.

  Returns:
    The table of `ratings.table`, or None without ratings.

  Raises:
    FileNotFoundError: ratings without the sheet's key.
    RatingError: ratings that are not of this sheet.
  """
  options = config.studies
  if options.rated_latents:
    chosen = rating_sheet.items(result, samples, options.rated_latents)
    rating_sheet.write(folder, chosen, tokenizer, seed=config.seed)
  if not options.ratings:
    return None
  key = folder / rating_sheet.KEY
  if not key.exists():
    raise FileNotFoundError(
      f"studies.ratings names files, but there is no {key}: make the sheet first"
      " (--config.studies.rated_latents=20)"
    )
  return ratings.table(ratings.read(options.ratings, key))


def generate(lm, prompts: list[str], batch: int) -> list[str]:
  """Greedy continuations of prompts, up to the end of a line's worth."""
  encoded = [
    [lm.tokenizer.bos_id, *lm.tokenizer.encode(text)] for text in prompts
  ]
  found = []
  for start in range(0, len(encoded), batch):
    some = encoded[start : start + batch]
    length = -(-max(map(len, some)) // _ROUND) * _ROUND
    tokens = np.full((batch, length), lm.tokenizer.pad_id, np.int32)
    mask = np.zeros((batch, length), bool)
    for row, ids in enumerate(some):
      tokens[row, : len(ids)] = ids
      mask[row, : len(ids)] = True
    said = gemma.sample(
      lm.config,
      lm.params,
      tokens,
      mask=mask,
      stop_ids=(lm.tokenizer.eos_id,),
      pad_id=lm.tokenizer.pad_id,
      max_new_tokens=_EXPLANATION,
      temperature=0,
    )
    whole, ends = np.asarray(said.tokens), np.asarray(said.lengths)
    for row, ids in enumerate(some):
      new = whole[row, len(ids) : ends[row]]
      found.append(lm.tokenizer.decode([int(id_) for id_ in new]))
  return found
