"""What a config means: checked, and turned into the library's arguments."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from gemmascope_jax import cache, finetune, gemma, parallel, training
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.stores import store_plan
from gemmascope_jax.data.streams.joint import SEPARATOR
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.data.text import documents, texts
from gemmascope_jax.data.tokens import packing
from gemmascope_jax.data.tokens.chat import ChatTemplate
from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.load import open_source
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.training import units

Config = ml_collections.ConfigDict
_DTYPES = ("float32", "bfloat16")
_BY_K = ("topk", "batch_topk")


def check(config: Config) -> None:
  """Refuses a config that could not be carried out, before anything runs.

  Raises:
    ValueError: names the setting and what it should be.
  """
  _check_sites(config)
  _check_dtype(config)
  for recipe in recipes(config):
    units.check(recipe, config.train.target_site or None)
  if not sources(config):
    raise ValueError("data.sources is empty: name at least one text")
  for source in sources(config):
    texts.check(source)
  for section, names in (
    ("train", ("tokens",)),
    ("evaluate", ("sequences", "stride", "batch", "latents", "contexts")),
    ("evaluate", ("pca_components", "context_rows")),
    ("harvest", ("rows", "rows_per_shard", "parts")),
    ("mesh", ("data", "model")),
  ):
    for name in names:
      if config[section][name] < 1:
        raise ValueError(
          f"{section}.{name} is {config[section][name]}; expected at least 1"
        )
  if config.recipe.batch_size % config.mesh.data:
    raise ValueError(
      f"recipe.batch_size is {config.recipe.batch_size}; expected a multiple of"
      f" mesh.data, {config.mesh.data}, which a batch is split over"
    )
  if config.harvest.batch < 0 or config.mesh.memory_gib < 0:
    raise ValueError(
      f"harvest.batch is {config.harvest.batch}, mesh.memory_gib"
      f" {config.mesh.memory_gib}; expected at least 0 (chosen, and asked for)"
    )
  if not 0 <= config.harvest.part < config.harvest.parts:
    raise ValueError(
      f"harvest.part is {config.harvest.part}; expected"
      f" 0..{config.harvest.parts - 1}, one of harvest.parts"
    )
  if config.harvest.dtype not in store_plan.DTYPES:
    raise ValueError(
      f"harvest.dtype is {config.harvest.dtype!r}; expected one of"
      f" {', '.join(store_plan.DTYPES)}"
    )
  if config.data.window < 2 or not 0 <= config.data.held_out <= 1:
    raise ValueError(
      f"data.window is {config.data.window}, data.held_out"
      f" {config.data.held_out}; expected at least 2 tokens, and a share from 0"
      " to 1"
    )
  if config.data.rollouts and not config.data.chat:
    raise ValueError(
      f"data.rollouts is {config.data.rollouts}, which are chats: expected"
      " data.chat, so that the user's prefix is not trained on"
    )
  if config.data.source_timeout <= 0:
    raise ValueError(
      f"data.source_timeout is {config.data.source_timeout}; expected more"
      " than 0 seconds"
    )
  shuffle(config)
  schedule(config)


def _check_sites(config: Config) -> None:
  """Sites that exist, are harvested, and make an SAE or one of its kin."""
  trained, harvested = trained_sites(config), config.harvest.sites
  if not harvested:
    raise ValueError("harvest.sites is empty: name at least one, as 'res.12'")
  lm = architecture(config)
  for name in (*harvested, *trained):
    sites.check(lm, name) if lm else sites.parse(name)
  target = config.train.target_site
  where = f"train.site is {config.train.site}"
  if target:
    where += f", train.target_site {target}"
  missing = [name for name in trained if name not in harvested]
  if missing:
    raise ValueError(
      f"{where}, but harvest.sites are {', '.join(harvested)}: harvest"
      f" {', '.join(missing)} too"
    )
  if len(set(trained)) < len(trained):
    raise ValueError(f"{where}: expected each site once")
  if target and len(trained) > 2:
    raise ValueError(f"{where}: expected one site for a transcoder to read")


def _check_dtype(config: Config) -> None:
  if config.lm.dtype not in _DTYPES:
    raise ValueError(
      f"lm.dtype is {config.lm.dtype!r}; expected one of {', '.join(_DTYPES)}"
    )


def architecture(config: Config) -> gemma.GemmaConfig | None:
  """The model that `lm.source` ends with the name of; None if there is none.

  Nothing is read.
  """
  name = re.split(r"[/\\]", config.lm.source.rstrip("/"))[-1]
  return gemma.PRESETS.get("gemma-3-270m" if name == "demo" else name)


def input_sites(config: Config) -> tuple[str, ...]:
  """The sites that training reads: several for a crosscoder."""
  return tuple(config.train.site.split(SEPARATOR))


def trained_sites(config: Config) -> tuple[str, ...]:
  """The sites that training needs: those, and a transcoder's target."""
  target = config.train.target_site
  return (*input_sites(config), *([target] if target else []))


def workdir(config: Config) -> pathlib.Path:
  """The folder that everything is written below."""
  return pathlib.Path(config.workdir)


def resolved(config: Config) -> dict[str, Any]:
  """The config as plain JSON; where it is run and how it looks left out."""
  values = json.loads(config.to_json_best_effort())
  for name in ("part", "parts"):
    del values["harvest"][name]
  return {k: v for k, v in values.items() if k not in ("workdir", "progress")}


def load_lm(
  config: Config,
  names: tuple[str, ...] | None = None,
  *,
  one_copy: bool = False,
):
  """The language model; with site names, only the layers they need.

  With `lm.delta`, a fine-tune of it. Of several processes each has a copy of
  its own, for work that they divide; with `one_copy` they share one, and every
  call of the model is made by all.
  """
  _check_dtype(config)
  layers = None
  if names is not None:
    layers = 1 + max(sites.parse(name).layer for name in names)
    # A site that the model lacks is refused before anything heavy is read.
    architecture = open_source(config.lm.source, layers).config
    for name in names:
      sites.check(architecture, name)
  lm = gemma.load(
    config.lm.source,
    dtype=jnp.dtype(config.lm.dtype),
    num_layers=layers,
    mesh=mesh(config) if one_copy else own_mesh(config),
    fully_sharded=config.mesh.fully_sharded,
  )
  delta = config.lm.get("delta")
  return finetune.apply(lm, delta) if delta else lm


def mesh(config: Config) -> Mesh | None:
  """The configured devices, of all processes; None for the default one."""
  axes = _axes(config)
  return None if set(axes.values()) == {1} else parallel.make_mesh(axes)


def own_mesh(config: Config) -> Mesh | None:
  """This process's share of the configured devices; None for the default one.

  For work that processes divide among them: each runs the model on its own
  devices. Axis "data" is what is divided; one device is no mesh.

  Raises:
    ValueError: the axes can't be divided so.
  """
  count, axes = jax.process_count(), _axes(config)
  if count == 1:
    return mesh(config)
  if jax.local_device_count() == 1 or set(axes.values()) == {1}:
    return None
  if axes[parallel.DATA] % count:
    raise ValueError(
      f"{count} processes, each with its own copy of the model, and mesh.data"
      f" is {config.mesh.data}: expected a multiple of {count}"
    )
  axes[parallel.DATA] //= count
  if set(axes.values()) == {1}:
    return None
  return parallel.make_mesh(axes, jax.local_devices())


def _axes(config: Config) -> dict[str, int]:
  return {parallel.DATA: config.mesh.data, parallel.MODEL: config.mesh.model}


def sources(config: Config) -> tuple[str, ...]:
  """Names of the texts; a single one may stand without parentheses."""
  named = config.data.sources
  return (named,) if isinstance(named, str) else tuple(named)


def text(config: Config) -> dict[str, Any]:
  """What determines the text, as plain JSON; not where activations are."""
  values = config.data.to_dict()
  for name in ("source", "source_timeout", "source_ca"):
    del values[name]
  named = (*sources(config), values["rollouts"])
  return values | {"files": [_contents(name) for name in named if name]}


def shuffle(config: Config) -> Shuffle:
  """The order in which training sees rows."""
  return Shuffle(
    seed=config.seed,
    kind=config.train.shuffle,
    bucket_rows=config.train.bucket_rows,
    block_rows=config.train.block_rows,
  )


def chat_template(config: Config, tokenizer) -> ChatTemplate | None:
  """The markup around documents, if there is to be one."""
  return ChatTemplate.of(tokenizer) if config.data.chat else None


def token_policy(config: Config, tokenizer) -> TokenPolicy:
  """Which positions are trained on, spliced and counted."""
  return packing.default_policy(tokenizer, chat_template(config, tokenizer))


def mixed_documents(config: Config, split: str):
  """Documents of a split, "train" or "held_out", of all sources."""
  return documents.mix(
    sources(config),
    split,
    folder=config.data.packages or None,
    held_out=config.data.held_out,
    piece_characters=config.data.piece_characters or None,
  )


def model_files(config: Config) -> list:
  """Size and time of local weights: replaced ones are noticed."""
  delta = config.lm.get("delta")
  found = _files(config.lm.source)
  if delta:
    found += _files(str(pathlib.Path(delta, finetune.FILE)))
  return found


def _contents(source: str) -> list:
  """Names and hashes of local texts: the same on every machine."""
  return [
    [name, cache.file_hash(path)] for name, path, _ in _local_files(source)
  ]


def _files(source: str) -> list:
  return [
    [name, stat.st_size, stat.st_mtime_ns]
    for name, _, stat in _local_files(source)
  ]


def _local_files(source: str) -> list:
  """(name, path, stat) of the files of a local source."""
  name = source.removeprefix("file:").removeprefix("hf:")
  path = pathlib.Path(name).expanduser()
  if not path.exists():
    return []
  files = sorted(path.rglob("*")) if path.is_dir() else [path]
  return [(file.name, file, file.stat()) for file in files if file.is_file()]


def recipes(config: Config) -> list[Recipe]:
  """A recipe for each member of the sweep.

  One for each of `train.target_l0s`, or else each of
  `train.sparsity_coefficients`, and then one for each of `train.members`; if
  there are none of these, the recipe's own.

  Raises:
    ValueError: a value that makes no sense, or a member's setting that the
      recipe lacks; see `Recipe`.
  """
  train, values = config.train, config.recipe.to_dict()
  for name, value in (
    ("train.tokens", train.tokens),
    ("recipe.batch_size", config.recipe.batch_size),
  ):
    if value < 1:
      raise ValueError(f"{name} is {value}; expected at least 1")
  if "steps" in values:
    raise ValueError(
      f"recipe.steps is {values['steps']}, but train.tokens over"
      " recipe.batch_size says how many there are: leave it out"
    )
  for name, example in (
    ("target_l0s", "(20, 50)"),
    ("sparsity_coefficients", "(3e-4,)"),
    ("members", '({"k": 20},)'),
    ("loggers", '("wandb",)'),
  ):
    if not isinstance(train[name], (list, tuple)):
      raise ValueError(
        f"train.{name} is {str(train[name]).strip()!r}; expected a tuple, as"
        f" {example}"
      )
  values["steps"] = -(-train.tokens // config.recipe.batch_size)
  quadratic = {
    "sparsity_loss": "l0_target",
    "sparsity_coefficient": train.target_l0_coefficient,
  }
  members = [quadratic | {"target_l0": l0} for l0 in train.target_l0s]
  if not members:
    members = [
      {"sparsity_coefficient": coefficient}
      for coefficient in train.sparsity_coefficients
    ]
  if members and config.recipe.family in _BY_K:
    raise ValueError(
      f"recipe.family is {config.recipe.family!r}, whose sparsity is k, not"
      " lambda: expected train.sparsity_coefficients=() and"
      ' train.members=({"k": 20}, {"k": 50})'
    )
  found = [_recipe(values | member) for member in members]
  for index, member in enumerate(train.members):
    if not isinstance(member, (dict, Config)):
      raise ValueError(
        f"train.members[{index}] is {member!r}; expected settings of the recipe,"
        ' and a comma after the last one, as ({"k": 20},)'
      )
    try:
      found.append(_recipe(values | dict(member)))
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"train.members[{index}] is {member!r}: {error}"
      ) from error
  return found or [_recipe(values)]


def _recipe(values: dict[str, Any]) -> Recipe:
  start = values.get("threshold_init_l0") or None
  return Recipe.from_dict(values | {"threshold_init_l0": start})


def schedule(config: Config) -> training.Schedule:
  """When training logs and saves."""
  fields = ("log_every", "checkpoint_every", "checkpoint_minutes")
  fields += ("keep_checkpoints", "keep_best")
  return training.Schedule(
    progress=config.progress, **{name: config.train[name] for name in fields}
  )
