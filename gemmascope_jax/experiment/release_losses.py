"""Losses of the SAEs of a release: from the run's results, or measured.

A result is used if it is of the same weights, model, tokens, token policy and
precision, and if its L0 and FVU are what is read now.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from gemmascope_jax import artifacts
from gemmascope_jax.experiment import (
  evaluation,
  members,
  release_sources,
  settings,
)
from gemmascope_jax.experiment.bench import Bench
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.studies import side_by_side
from gemmascope_jax.studies.reconstruction import Reading

_STUDY = "results/studies/fidelity.json"
# Of a result, where it has them.
_MORE = ("loss_spliced", "kl", "cosine", "bias")
_SAME = 1e-3  # of L0 and FVU, between a result and what is read now


def metrics(
  config: Config,
  bench: Bench,
  hashes: Mapping[str, str],
  readings: Mapping[str, Reading],
) -> tuple[dict[str, tuple[dict[str, Any], str]], int]:
  """Everything that a card says an SAE does.

  Args:
    config: of the run, or of several; its results are looked at.
    bench: the SAEs, the model and the tokens.
    hashes: of the weights of each SAE, by name.
    readings: L0, FVU and silent latents of each, on the bench's tokens.

  Returns:
    {name: (metrics, version of the code that measured the losses)}, and of how
    many SAEs the losses were there.
  """
  found = _of_study(config, bench, hashes) | _of_evaluation(config, bench)
  found = {
    name: known
    for name, known in found.items()
    if name in hashes and _agrees(known[0], readings[name])
  }
  reused = len(found)
  missing = [one for one in bench.every() if one.name not in found]
  if missing:
    subjects: dict[str, list] = {}
    for one in missing:
      subjects.setdefault(one.site, []).append(one)
    rows = [one.describe() for one in missing]
    result = side_by_side.result(rows, bench.measured(subjects))
    found |= _of_result(result, artifacts.code_version())
  made = {}
  for name, (known, code) in found.items():
    own = readings[name]
    made[name] = (
      known
      | {
        "l0": own.l0().to_dict(),
        "fvu": own.fvu().to_dict(),
        "silent": own.silent_share().to_dict(),
      },
      code,
    )
  return made, reused


def _agrees(known, reading) -> bool:
  """Whether a result's L0 and FVU are those that are read now."""
  for name, now in (("l0", reading.l0()), ("fvu", reading.fvu())):
    if abs(known[name]["mean"] - now.mean) > _SAME * abs(now.mean):
      logging.warning(
        "the run's results say %s %.6g where %.6g is measured: its losses are"
        " measured again",
        name,
        known[name]["mean"],
        now.mean,
      )
      return False
  return True


def _of_result(result, code: str) -> dict[str, tuple]:
  """From the fidelity study."""
  clean = {each["site"]: each["clean_loss"] for each in result["sites"]}
  return {
    row["name"]: (
      {"l0": row["l0"], "fvu": row["fvu"], "delta_loss": row["delta_loss"]}
      | {"loss_recovered": row["loss_recovered_zero"]}
      | {"loss_clean": clean[row["site"]]}
      | {name: row[name] for name in _MORE if row.get(name)},
      code,
    )
    for row in result["saes"]
  }


def _of_study(config, bench, hashes) -> dict[str, tuple]:
  """The run's study of fidelity, where it is of the same of everything."""
  result = _result(settings.workdir(config) / _STUDY)
  evaluate = (result.get("config") or {}).get("evaluate", {})
  own = bench.provenance()
  same = (
    result.get("format") == side_by_side.FORMAT
    and result.get("model") == own["model"]
    and result.get("token_policy") == own["token_policy"]
    and result["tokens"].get("hash") == own["tokens"]["hash"]
    and result["config"]["lm"]["dtype"] == bench.config.lm.dtype
    and evaluate.get("splice_special") == bench.config.evaluate.splice_special
  )
  if not same:
    return {}
  there = {value: name for name, value in result["hashes"].items()}
  rows = _of_result(result, result["code"])
  return {
    name: rows[there[value]]
    for name, value in hashes.items()
    if there.get(value) in rows
  }


def _of_evaluation(config, bench) -> dict[str, tuple]:
  """The run's own evaluation, where its key says that nothing has changed."""
  result = _result(settings.workdir(config) / evaluation.RESULT)
  if not result or config.runs:
    return {}
  try:
    finished = members.finished_members(config)
  except FileNotFoundError:
    return {}
  rows_store = release_sources.rows(config)
  if rows_store is None:
    return {}
  saes = [member.finished for member in finished]
  if result.get("key") != evaluation.result_key(config, saes, rows_store):
    return {}
  return {
    row["name"]: (
      {
        name: row[name]
        for name in ("l0", "fvu", "delta_loss", "loss_recovered")
      }
      | {"loss_clean": result["clean_loss"]},
      result["code"],
    )
    for row in result["rows"]
    if row["kind"] == "sae"
  }


def _result(path: pathlib.Path) -> dict[str, Any]:
  try:
    return artifacts.read_json(path)
  except (FileNotFoundError, ValueError):
    return {}
