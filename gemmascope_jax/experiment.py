"""The stations in a row, from one config: what the binaries call.

Each stage reads what the one before it left in the work directory, so each can
be run alone, and one that has finished is not done twice:

  harvest  -> store/, store.json
  train    -> train/ (metrics, checkpoints, finished SAEs)
  evaluate -> results/ (JSON), releases/ (folders named by measured L0)
  report   -> report/ (page, figures, tables)
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from gemmascope_jax import artifacts, gemma, parallel, report, sae, training
from gemmascope_jax.data import documents, packing, store, stream, texts
from gemmascope_jax.data import harvest as harvesting
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.load import open_source
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.studies import latents, sweep_fidelity

Config = ml_collections.ConfigDict
_STORE = "store.json"
_DTYPES = ("float32", "bfloat16")


def harvest(config: Config) -> store.Store:
  """Text -> activations on disk.

  Loads only the layers up to the last site.
  """
  key = artifacts.fingerprint(
    [config.lm.to_dict(), config.data.to_dict(), config.harvest.to_dict()]
  )
  pointer = _workdir(config) / _STORE
  if pointer.exists():
    found = artifacts.read_json(pointer)
    root = _workdir(config) / found["root"]
    if found["key"] == key and root.exists():
      return store.Store.open(root)
  lm = _load_lm(config, tuple(config.harvest.sites))
  policy = TokenPolicy.of(lm.tokenizer)
  windows = packing.pack(
    _documents(config, "train"),
    lm.tokenizer,
    config.data.window,
    policy=policy,
    rows=config.harvest.rows,
    packed=config.data.packed,
  )
  arguments: dict[str, Any] = {
    "rows": config.harvest.rows,
    "rows_per_shard": config.harvest.rows_per_shard,
    "batch": config.harvest.batch,
    "dtype": config.harvest.dtype,
  }
  names = tuple(config.harvest.sites)
  plan = harvesting.plan(lm, windows, names, policy, **arguments)
  made = harvesting.harvest(
    lm,
    windows,
    names,
    _workdir(config) / "store" / plan.name,
    policy,
    config=_resolved(config),
    progress=config.progress,
    **arguments,
  )
  artifacts.write_json(pointer, {"key": key, "root": f"store/{plan.name}"})
  return made


def train(config: Config) -> list[pathlib.Path]:
  """Activations -> a sweep of SAEs, one a sparsity coefficient."""
  recipes = _recipes(config)
  batches = stream.StoreStream(
    _open_store(config),
    config.train.site,
    config.recipe.batch_size,
    seed=config.seed,
    bucket_rows=config.train.bucket_rows,
  )
  return training.train(
    batches,
    recipes,
    _workdir(config) / "train",
    seed=config.seed,
    mesh=_mesh(config),
    schedule=training.Schedule(
      log_every=config.train.log_every,
      checkpoint_every=config.train.checkpoint_every,
      keep_checkpoints=config.train.keep_checkpoints,
      progress=config.progress,
    ),
  )


def evaluate(config: Config) -> dict[str, Any]:
  """SAEs -> results with standard errors, and releases named by their L0."""
  workdir = _workdir(config)
  folders = _finished_members(config)
  saes = [sae.load(folder) for folder in folders]
  names = [each.config.details()["name"] for each in saes]
  key = artifacts.fingerprint(
    [
      [artifacts.sha256_file(f / gemma_scope.ARRAYS) for f in folders],
      config.lm.to_dict(),
      config.data.to_dict(),
      config.evaluate.to_dict(),
      config.report.to_dict(),
    ]
  )
  result_file = workdir / "results" / "fidelity.json"
  latents_file = workdir / "results" / "latents.json"
  if result_file.exists() and latents_file.exists():
    result = artifacts.read_json(result_file)
    if result["key"] == key and _released(workdir, result):
      return result
  site = config.train.site
  activations = _open_store(config)
  lm = _load_lm(config)
  held_out = packing.pack(
    _documents(config, "held_out"),
    lm.tokenizer,
    config.data.window,
    windows=config.evaluate.sequences,
    packed=config.data.packed,
  )
  common = _provenance(config, lm, activations) | {"key": key, "site": site}
  study = sweep_fidelity.run(
    lm,
    site,
    dict(zip(names, saes, strict=True)),
    [sae.load(_initial(folder)) for folder in folders],
    activations,
    held_out.tokens,
    workdir / "results" / "parts",
    baselines=sweep_fidelity.Baselines(
      components=config.evaluate.pca_components,
      target_l0=config.evaluate.target_l0,
    ),
    batch=config.evaluate.batch,
    progress=config.progress,
  )
  study["tokens"] |= {
    "split": "held_out",
    "sources": list(config.data.sources),
    "licences": {name: texts.licence(name) for name in config.data.sources},
  }
  rows = {row["name"]: row for row in study["rows"]}
  layer = sites.parse(site).layer
  taken: set[str] = set()
  for name, each in zip(names, saes, strict=True):
    l0 = rows[name]["l0"]["mean"]
    release = _free(gemma_scope.folder_name(layer, each.width, l0), taken)
    rows[name]["release"] = f"releases/{release}"
    gemma_scope.save(each, workdir / "releases" / release)
  result = {"study": "fidelity", "format": 1} | common | study
  nearest = min(
    names,
    key=lambda n: abs(rows[n]["l0"]["mean"] - config.evaluate.target_l0),
  )
  shown = saes[names.index(nearest)]
  described = latents.describe(
    lm,
    shown,
    activations,
    latents=config.report.latents,
    contexts=config.report.contexts,
    rows=config.report.rows,
    progress=config.progress,
  )
  described["sae"] = {
    "name": nearest,
    "l0": rows[nearest]["l0"]["mean"],
    "width": shown.width,
    "release": rows[nearest]["release"],
  }
  artifacts.write_json(
    latents_file, {"study": "latents", "format": 1} | common | described
  )
  # Last: a result with its key says that everything before it is there.
  artifacts.write_json(result_file, result)
  return result


def make_report(config: Config) -> dict[str, pathlib.Path]:
  """Results -> one page, figures and tables."""
  workdir = _workdir(config)
  if not (workdir / "results" / "fidelity.json").exists():
    raise FileNotFoundError(
      f"no results in {workdir}: run `python -m experiments.evaluate` with the"
      " same --config first"
    )
  return report.build(
    workdir / "results", workdir / "train", workdir / "report"
  )


def _workdir(config: Config) -> pathlib.Path:
  return pathlib.Path(config.workdir)


def _resolved(config: Config) -> dict[str, Any]:
  """The config as plain JSON; where it is run and how it looks left out."""
  values = json.loads(config.to_json_best_effort())
  return {k: v for k, v in values.items() if k not in ("workdir", "progress")}


def _load_lm(config: Config, names: tuple[str, ...] | None = None):
  """The language model; with site names, only the layers they need."""
  if config.lm.dtype not in _DTYPES:
    raise ValueError(
      f"lm.dtype is {config.lm.dtype!r}; expected one of {', '.join(_DTYPES)}"
    )
  layers = None
  if names is not None:
    layers = 1 + max(sites.parse(name).layer for name in names)
    # A site that the model lacks is refused before anything heavy is read.
    architecture = open_source(config.lm.source, layers).config
    for name in names:
      sites.check(architecture, name)
  return gemma.load(
    config.lm.source,
    dtype=jnp.dtype(config.lm.dtype),
    num_layers=layers,
    mesh=_mesh(config),
  )


def _mesh(config: Config) -> Mesh | None:
  """The configured devices; None for the default one."""
  axes = {
    parallel.DATA: config.mesh.data,
    parallel.MODEL: config.mesh.model,
  }
  if set(axes.values()) == {1}:
    return None
  return parallel.make_mesh(axes)


def _documents(config: Config, split: str):
  return documents.mix(
    tuple(config.data.sources),
    split,
    folder=config.data.packages or None,
    held_out=config.data.held_out,
    piece_characters=config.data.piece_characters or None,
  )


def _open_store(config: Config) -> store.Store:
  pointer = _workdir(config) / _STORE
  if not pointer.exists():
    raise FileNotFoundError(
      f"no activations in {config.workdir}: run `python -m"
      " experiments.harvest` with the same --config first"
    )
  root = artifacts.read_json(pointer)["root"]
  return store.Store.open(_workdir(config) / root)


def _recipes(config: Config) -> list[Recipe]:
  values = config.recipe.to_dict()
  values["threshold_init_l0"] = values["threshold_init_l0"] or None
  steps = -(-config.train.tokens // config.recipe.batch_size)
  return [
    Recipe.from_dict(
      values | {"steps": steps, "sparsity_coefficient": coefficient}
    )
    for coefficient in config.train.sparsity_coefficients
  ]


def _finished_members(config: Config) -> list[pathlib.Path]:
  found = training.members(_workdir(config) / "train", _recipes(config))
  missing = [path.name for path in found if not training.is_finished(path)]
  if missing:
    raise FileNotFoundError(
      f"no trained SAE {missing[0]} in {config.workdir}: run `python -m"
      " experiments.train` with the same --config first"
    )
  return found


def _initial(folder: pathlib.Path) -> pathlib.Path:
  return folder.parent.parent / training.INITIAL / folder.name


def _free(release: str, taken: set[str]) -> str:
  """`release`, numbered if an SAE with the same rounded L0 has it already."""
  number, name = 1, release
  while name in taken:
    number += 1
    name = f"{release}-{number}"
  taken.add(name)
  return name


def _released(workdir: pathlib.Path, result: dict) -> bool:
  releases = [row["release"] for row in result["rows"] if row["kind"] == "sae"]
  return all((workdir / r / gemma_scope.CARD).exists() for r in releases)


def _provenance(config: Config, lm, activations) -> dict[str, Any]:
  return {
    "model": {
      "label": lm.label,
      "weights_hash": lm.weights_hash,
      "tokenizer": lm.tokenizer.fingerprint,
    },
    "token_policy": activations.policy.to_dict(),
    "store": activations.fingerprint,
    "config": _resolved(config),
    "code": artifacts.code_version(),
  }
