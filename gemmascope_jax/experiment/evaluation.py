"""The evaluation stage: results, releases, and latents to look at."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

from absl import logging

from gemmascope_jax import artifacts, sae, training
from gemmascope_jax.data.streams import stream
from gemmascope_jax.data.text import texts
from gemmascope_jax.experiment import activations, bench, members, settings
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.gemma import sites
from gemmascope_jax.parallel import processes
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.studies import latents, sweep_fidelity

RESULT = "results/fidelity.json"
_LATENTS = "results/latents.json"


def evaluate(config: Config) -> dict[str, Any]:
  """SAEs -> results with standard errors, and releases named by their L0.

  Of several processes that share the work directory all call this: each
  measures its share of the sequences, the first writes what is written once.
  """
  settings.check(config)
  if config.runs:
    raise ValueError(
      f"the config names {len(config.runs)} runs: their SAEs are looked at by"
      " studies (--study=all)"
    )
  workdir, site = settings.workdir(config), config.train.site
  if len(settings.trained_sites(config)) > 1:
    raise ValueError(
      f"train.site is {site}, train.target_site {config.train.target_site!r}:"
      " evaluation splices an SAE into the one site that it reads and writes;"
      " transcoders and crosscoders can be trained, but not evaluated yet"
    )
  finished = members.finished_members(config)
  folders = [member.finished for member in finished]
  rows_store = activations.open_rows(config)
  training.require_run(
    workdir / members.FOLDER,
    stream.StoreStream(
      rows_store, site, config.recipe.batch_size, settings.shuffle(config)
    ),
    config.seed,
  )
  key = result_key(config, folders, rows_store)
  before = _previous_result(workdir)
  if before.get("key") == key and _is_whole(workdir, before):
    return before
  saes = [sae.load(folder) for folder in folders]
  names = [member.name for member in finished]
  lm = settings.load_lm(config)
  common = _provenance(config, lm, rows_store) | {"key": key, "site": site}
  study = sweep_fidelity.run(
    lm,
    site,
    dict(zip(names, saes, strict=True)),
    [sae.load(member.initial) for member in finished],
    rows_store,
    bench.held_out(config, lm, rows_store.keys),
    workdir / "results" / "parts",
    baselines=sweep_fidelity.Baselines(
      components=config.evaluate.pca_components,
      target_l0=config.evaluate.target_l0,
    ),
    batch=config.evaluate.batch,
    together=processes.are_several(),
    progress=config.progress,
  )
  processes.by_the_first(
    lambda: _write(config, lm, saes, names, rows_store, study, common, before)
  )
  return artifacts.read_json(workdir / RESULT)


def _write(config, lm, saes, names, rows_store, study, common, before) -> None:
  """The result's files; `RESULT` last, which says that all others are there."""
  workdir, site = settings.workdir(config), config.train.site
  study["tokens"] |= {
    "split": "held_out",
    "sources": list(settings.sources(config)),
    "licences": {
      name: texts.licence(name) for name in settings.sources(config)
    },
  }
  rows = {row["name"]: row for row in study["rows"]}
  _release(workdir, site, saes, [rows[name] for name in names], before)
  nearest = min(
    names,
    key=lambda n: abs(rows[n]["l0"]["mean"] - config.evaluate.target_l0),
  )
  shown = saes[names.index(nearest)]
  latents_file = workdir / _LATENTS
  latents_file.unlink(missing_ok=True)
  try:
    described = latents.describe(
      lm,
      shown,
      rows_store,
      latents=config.evaluate.latents,
      contexts=config.evaluate.contexts,
      rows=config.evaluate.context_rows,
      progress=config.progress,
    )
  except latents.DeadSAEError as error:
    logging.warning("no latents on the page: %s", error)
  else:
    described["sae"] = {
      "name": nearest,
      "l0": rows[nearest]["l0"]["mean"],
      "width": shown.width,
      "release": rows[nearest]["release"],
    }
    artifacts.write_json(
      latents_file, {"study": "latents", "format": 1} | common | described
    )
  result = {"study": "fidelity", "format": 1} | common | study
  result["has_latents"] = latents_file.exists()
  artifacts.write_json(workdir / RESULT, result)


def result_key(config: Config, folders, rows_store) -> str:
  """Of everything that an evaluation of SAEs in `folders` depends on."""
  return artifacts.fingerprint(
    [
      [artifacts.sha256_file(f / gemma_scope.ARRAYS) for f in folders],
      rows_store.fingerprint,
      config.train.site,
      config.lm.to_dict(),
      settings.text(config),
      config.evaluate.to_dict(),
      settings.model_files(config),
      artifacts.code_version(),
    ]
  )


def _release(workdir, site, saes, rows, before) -> None:
  """Writes each SAE under its measured L0, and says where in its row.

  Folders of the result before this one that no row names now are removed.
  """
  for row, each in zip(rows, saes, strict=True):
    name = "releases/" + gemma_scope.folder_name(
      sites.parse(site).layer, each.width, row["l0"]["mean"]
    )
    taken = [other["release"] for other in rows if "release" in other]
    number, row_name = 1, name
    while row_name in taken:  # another SAE with the same rounded L0
      number += 1
      row_name = f"{name}-{number}"
    row["release"] = row_name
    gemma_scope.save(each, workdir / row_name)
  now = {row["release"] for row in rows}
  for old in _releases(before) - now:
    for file in (gemma_scope.CARD, gemma_scope.ARRAYS):
      (workdir / old / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the user may keep things there
      (workdir / old).rmdir()


def _releases(result: dict) -> set[str]:
  rows = result.get("rows", ())
  return {row["release"] for row in rows if row.get("release")}


def _previous_result(workdir: pathlib.Path) -> dict[str, Any]:
  """The result that is there, or nothing."""
  try:
    return artifacts.read_json(workdir / RESULT)
  except (FileNotFoundError, ValueError):
    return {}


def _is_whole(workdir: pathlib.Path, result: dict) -> bool:
  """Whether everything that belongs to a result is still there."""
  if result["has_latents"]:
    try:
      described = artifacts.read_json(workdir / _LATENTS)
    except (FileNotFoundError, ValueError):
      return False
    if described.get("key") != result["key"]:
      return False
  return all(gemma_scope.is_whole(workdir / r) for r in _releases(result))


def _provenance(config: Config, lm, rows_store) -> dict[str, Any]:
  return {
    "model": {
      "label": lm.label,
      "weights_hash": lm.weights_hash,
      "tokenizer": lm.tokenizer.fingerprint,
    },
    "token_policy": rows_store.policy.to_dict(),
    "store": rows_store.fingerprint,
    "config": settings.resolved(config),
    "code": artifacts.code_version(),
  }
