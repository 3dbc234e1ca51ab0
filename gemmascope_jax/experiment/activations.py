"""The harvest stage, and the stream that later stages read."""

from __future__ import annotations

import pathlib
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.data import harvest as harvesting
from gemmascope_jax.data import (
  packing,
  store,
  store_plan,
  store_writing,
  stream,
)
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.experiment import settings
from gemmascope_jax.experiment.settings import Config

_STORE = "store.json"


def harvest(config: Config) -> store.Store:
  """Text -> activations on disk.

  Loads only the layers up to the last site.
  """
  settings.check(config)
  key = artifacts.fingerprint(
    [
      config.lm.to_dict(),
      config.data.to_dict(),
      {k: v for k, v in config.harvest.to_dict().items() if k != "verify"},
      settings.local_inputs(config),
    ]
  )
  root = _finished_store(config, key)
  if root is not None:
    return store.Store.open(root)
  lm = settings.load_lm(config, tuple(config.harvest.sites))
  policy = TokenPolicy.of(lm.tokenizer)
  windows = packing.pack(
    settings.mixed_documents(config, "train"),
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
    settings.workdir(config) / "store" / plan.name,
    policy,
    config=settings.resolved(config),
    progress=config.progress,
    **arguments,
  )
  artifacts.write_json(
    settings.workdir(config) / _STORE,
    {"key": key, "root": f"store/{plan.name}"},
  )
  return made


def _finished_store(config: Config, key: str) -> pathlib.Path | None:
  """The work directory's store, if it is this one and whole."""
  try:
    found = artifacts.read_json(settings.workdir(config) / _STORE)
    root = settings.workdir(config) / found["root"]
    plan = store_plan.StorePlan.from_dict(
      artifacts.read_json(root / store.PLAN), root
    )
  except (FileNotFoundError, KeyError, ValueError):
    return None
  if found["key"] != key or not store_writing.is_whole(root, plan):
    return None
  return root


def open_stream(config: Config) -> stream.StoreStream:
  """The training batches, from the store that `harvest` left.

  Raises:
    FileNotFoundError: there is none; says what to run.
    CorruptStoreError: a file of it is damaged (unless harvest.verify is off).
  """
  pointer = settings.workdir(config) / _STORE
  if not pointer.exists():
    raise FileNotFoundError(
      f"no activations in {config.workdir}: run `python -m"
      " experiments.harvest` with the same --config first"
    )
  root = settings.workdir(config) / artifacts.read_json(pointer)["root"]
  activations = store.Store.open(root)
  if config.harvest.verify:
    activations.verify(progress=config.progress)
  return stream.StoreStream(
    activations,
    config.train.site,
    config.recipe.batch_size,
    seed=config.seed,
    bucket_rows=config.train.bucket_rows,
  )
