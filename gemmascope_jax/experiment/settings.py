"""What a config means: checked, and turned into the library's arguments."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from gemmascope_jax import cache, gemma, parallel
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.stores import store_plan
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.data.text import documents
from gemmascope_jax.data.tokens import packing
from gemmascope_jax.data.tokens.chat import ChatTemplate
from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.load import open_source
from gemmascope_jax.sae.config import Recipe

Config = ml_collections.ConfigDict
_DTYPES = ("float32", "bfloat16")


def check(config: Config) -> None:
  """Refuses a config that could not be carried out, before anything runs.

  Raises:
    ValueError: names the setting and what it should be.
  """
  recipes(config)
  if not config.harvest.sites:
    raise ValueError("harvest.sites is empty: name at least one, as 'res.12'")
  for name in (*config.harvest.sites, config.train.site):
    sites.parse(name)
  if config.train.site not in config.harvest.sites:
    raise ValueError(
      f"train.site is {config.train.site}, but harvest.sites are"
      f" {', '.join(config.harvest.sites)}: harvest it too"
    )
  if not sources(config):
    raise ValueError("data.sources is empty: name at least one text")
  for section, names in (
    ("train", ("tokens", "log_every", "checkpoint_every", "keep_checkpoints")),
    ("evaluate", ("sequences", "stride", "batch", "latents", "contexts")),
    ("evaluate", ("pca_components", "context_rows")),
    ("harvest", ("rows", "rows_per_shard", "batch", "parts")),
    ("mesh", ("data", "model")),
  ):
    for name in names:
      if config[section][name] < 1:
        raise ValueError(
          f"{section}.{name} is {config[section][name]}; expected at least 1"
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
  if config.data.source_timeout <= 0:
    raise ValueError(
      f"data.source_timeout is {config.data.source_timeout}; expected more"
      " than 0 seconds"
    )
  shuffle(config)


def workdir(config: Config) -> pathlib.Path:
  """The folder that everything is written below."""
  return pathlib.Path(config.workdir)


def resolved(config: Config) -> dict[str, Any]:
  """The config as plain JSON; where it is run and how it looks left out."""
  values = json.loads(config.to_json_best_effort())
  for name in ("part", "parts"):
    del values["harvest"][name]
  return {k: v for k, v in values.items() if k not in ("workdir", "progress")}


def load_lm(config: Config, names: tuple[str, ...] | None = None):
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
    mesh=mesh(config),
  )


def mesh(config: Config) -> Mesh | None:
  """The configured devices; None for the default one."""
  axes = {
    parallel.DATA: config.mesh.data,
    parallel.MODEL: config.mesh.model,
  }
  if set(axes.values()) == {1}:
    return None
  return parallel.make_mesh(axes)


def sources(config: Config) -> tuple[str, ...]:
  """Names of the texts; a single one may stand without parentheses."""
  named = config.data.sources
  return (named,) if isinstance(named, str) else tuple(named)


def text(config: Config) -> dict[str, Any]:
  """What determines the text, as plain JSON; not where activations are."""
  values = config.data.to_dict()
  for name in ("source", "source_timeout", "source_ca"):
    del values[name]
  return values | {"files": [_contents(name) for name in sources(config)]}


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
  return _files(config.lm.source)


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
  """A recipe for each sparsity coefficient.

  Raises:
    ValueError: a value that makes no sense; see `Recipe`.
  """
  values = config.recipe.to_dict()
  values["threshold_init_l0"] = values["threshold_init_l0"] or None
  steps = -(-config.train.tokens // config.recipe.batch_size)
  return [
    Recipe.from_dict(
      values | {"steps": steps, "sparsity_coefficient": coefficient}
    )
    for coefficient in config.train.sparsity_coefficients
  ]
