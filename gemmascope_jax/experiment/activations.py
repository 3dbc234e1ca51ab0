"""The harvest stage, and where later stages get activations from."""

from __future__ import annotations

import pathlib
import re
import socket
from typing import Any

import jax

from gemmascope_jax import artifacts
from gemmascope_jax.data.serving.client import ServerStream
from gemmascope_jax.data.stores import harvest as harvesting
from gemmascope_jax.data.stores import store, store_writing
from gemmascope_jax.data.streams import joint, live, stream
from gemmascope_jax.data.tokens import rollouts, token_files
from gemmascope_jax.data.tokens.packing import Windows
from gemmascope_jax.experiment import memory, runs, settings
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.parallel import processes

LIVE = "live"
SERVERS = ("grpc://", "grpc+tls://")
_STORE = "store.json"


def harvest(config: Config) -> store.Store:
  """Text -> activations on disk.

  Loads only the layers up to the last site. With `harvest.parts`, and of
  several processes that were started together, this one makes its part of the
  store and waits for the others. `config.runs` get a
  store too: the same one, where the settings that decide its content are.

  Returns:
    The config's own store.
  """
  every = runs.runs(config).values()
  for each in every:
    settings.check(each)
  made = _harvest(config)
  if config.runs:
    key, where = _key(config), settings.workdir(config)
    root = artifacts.read_json(where / _STORE)["root"]
    for each in every:
      if each.data.source:
        continue
      if _key(each) == key:
        below = root if "://" in root or root.startswith("/") else f"../{root}"
        _point(each, key, below)
      else:
        _harvest(each)
  return made


def _harvest(config: Config) -> store.Store:
  settings.check(config)
  key = _key(config)
  found = _finished_store(config, key)
  if found is not None:
    return found
  names, mesh = tuple(config.harvest.sites), settings.own_mesh(config)
  batch = memory.harvest_batch(config, names, mesh, harvesting.AHEAD + 1)
  lm = settings.load_lm(config, names)
  windows = _windows(config, lm.tokenizer)
  policy = settings.token_policy(config, lm.tokenizer)
  arguments: dict[str, Any] = {
    "rows": config.harvest.rows,
    "rows_per_shard": config.harvest.rows_per_shard,
    "batch": batch,
    "dtype": config.harvest.dtype,
  }
  plan = harvesting.plan(lm, windows, names, policy, **arguments)
  root = f"{_stores(config)}/{plan.name}"
  made = harvesting.harvest(
    lm,
    windows,
    names,
    root,
    policy,
    config=settings.resolved(config),
    part=_part(config),
    mesh=mesh,
    progress=config.progress,
    **arguments,
  )
  inside = not config.harvest.root
  _point(config, key, f"store/{plan.name}" if inside else root)
  return made


def _part(config: Config) -> tuple[int, int]:
  """(number, count): which part of a store this process makes."""
  if config.harvest.parts == 1:
    return jax.process_index(), jax.process_count()
  if processes.are_several():
    raise ValueError(
      f"harvest.parts is {config.harvest.parts}, but {jax.process_count()}"
      " processes were started together, which divide the store themselves:"
      " leave it at 1, or start them alone (--distributed=off)"
    )
  return config.harvest.part, config.harvest.parts


def _point(config: Config, key: str, root: str) -> None:
  """Says where a work directory's store is."""
  pointer = settings.workdir(config) / _STORE
  artifacts.write_json(pointer, {"key": key, "root": root})


def _stores(config: Config) -> str:
  """The folder of stores: a URL, or a path from the file system's root."""
  named = config.harvest.root
  if "://" in named:
    return named.rstrip("/")
  if named:
    return str(pathlib.Path(named).expanduser().resolve())
  return str(settings.workdir(config) / "store")


def _key(config: Config) -> str:
  """Of all settings that decide what the store holds, and where it is."""
  where = ("part", "parts")
  return artifacts.fingerprint(
    [
      config.lm.to_dict(),
      settings.text(config),
      {k: v for k, v in config.harvest.to_dict().items() if k not in where},
      settings.model_files(config),
    ]
  )


def _windows(config: Config, tokenizer) -> Windows:
  """The training text as windows of tokens, on disk, made once.

  Parts that share a folder of stores on a file system share the tokenising as
  well; where that folder is on an object store, each part does all of it.
  """
  if config.data.rollouts:
    found = rollouts.load(config.data.rollouts)
    if found.about["tokenizer"] != tokenizer.fingerprint:
      raise ValueError(
        f"data.rollouts is {config.data.rollouts}, of {found.about['model']},"
        " whose tokenizer is another one than that of lm.source"
      )
    return rollouts.windows(found, config.data.window, tokenizer.pad_id)
  key = {"text": settings.text(config), "split": "train"}
  named = artifacts.fingerprint(
    [key, tokenizer.fingerprint, config.harvest.rows]
  )
  part = _part(config)
  folder = settings.workdir(config) / "tokens" / named
  if part[1] > 1 and "://" in config.harvest.root:
    part = (0, 1)
  elif part[1] > 1:
    folder = pathlib.Path(_stores(config)) / "tokens" / named
  return token_files.make(
    folder,
    lambda: settings.mixed_documents(config, "train"),
    tokenizer,
    config.data.window,
    key=key,
    policy=settings.token_policy(config, tokenizer),
    rows=config.harvest.rows,
    packed=config.data.packed,
    chat=settings.chat_template(config, tokenizer),
    part=part,
    progress=config.progress,
  )


def _finished_store(config: Config, key: str) -> store.Store | None:
  """The work directory's store, if it is this one and whole."""
  try:
    found = artifacts.read_json(settings.workdir(config) / _STORE)
    if found["key"] != key:
      return None
    opened = store.Store.open(_harvested(config))
  except (FileNotFoundError, KeyError, ValueError):
    return None
  whole = store_writing.is_whole(opened.root, opened.plan)
  return opened if whole else None


def _harvested(config: Config) -> str | pathlib.Path:
  """Where the store is that `harvest` left."""
  return store_of(settings.workdir(config))


def store_of(workdir: pathlib.Path) -> str | pathlib.Path:
  """Where the store is that `harvest` left for a run.

  Args:
    workdir: of the run.

  Returns:
    A path, or a URL.

  Raises:
    FileNotFoundError: nothing was harvested for it.
  """
  pointer = workdir / _STORE
  if not pointer.exists():
    raise FileNotFoundError(
      f"no activations in {workdir}: run `python -m"
      " experiments.harvest` with the same --config first, or name a source"
      " (--config.data.source=STORE, grpc://HOST:PORT or live)"
    )
  root = artifacts.read_json(pointer)["root"]
  return root if "://" in root else workdir / root


def open_rows(config: Config) -> store.Store | live.LiveRows:
  """Activations by number, as evaluation needs them.

  Raises:
    FileNotFoundError: there is no store; says what to run.
    ValueError: servers give batches only.
  """
  source = config.data.source
  if source.startswith(SERVERS):
    raise ValueError(
      f"data.source is {source}: servers give batches in training's order, but"
      " evaluation looks rows up; give it the store itself"
      " (--config.data.source=PATH)"
    )
  if source == LIVE:
    return _live_rows(config)
  if re.fullmatch(r"[\w.-]+:\d+", source):
    raise ValueError(
      f"data.source is {source}: expected grpc://{source} for a server, the path"
      " or URL of a store, or live"
    )
  return store.Store.open(source or _harvested(config))


def _live_rows(config: Config) -> live.LiveRows:
  if config.train.shuffle != "bucket":
    raise ValueError(
      f"train.shuffle is {config.train.shuffle!r}: a live model computes"
      " windows one after the other; use 'bucket'"
    )
  sites, mesh = settings.trained_sites(config), settings.mesh(config)
  batch = memory.harvest_batch(config, sites, mesh, live.AT_ONCE)
  lm = settings.load_lm(config, sites, one_copy=True)
  return live.LiveRows(
    lm,
    _windows(config, lm.tokenizer),
    sites,
    settings.token_policy(config, lm.tokenizer),
    settings.workdir(config) / LIVE,
    rows=config.harvest.rows,
    batch=batch,
    dtype=config.harvest.dtype,
    mesh=mesh,
  )


def open_stream(config: Config) -> stream.ActivationStream:
  """The training batches, from wherever `data.source` says.

  Of one site for an SAE; a transcoder's and a crosscoder's sites are joined.

  Raises:
    FileNotFoundError: there is no store; says what to run.
    ConnectionError: no server answers.
  """
  order = config.recipe.batch_size, settings.shuffle(config)
  if config.data.source.startswith(SERVERS):
    trainer = f"{socket.gethostname()}:{settings.workdir(config).resolve()}"
    parts = [
      ServerStream(
        config.data.source,
        site,
        *order,
        tls_ca=config.data.source_ca or None,
        timeout_s=config.data.source_timeout,
        trainer=f"{trainer} {site}",
      )
      for site in settings.trained_sites(config)
    ]
  else:
    rows = open_rows(config)
    parts = [
      stream.StoreStream(rows, site, *order)
      for site in settings.trained_sites(config)
    ]
  if config.train.target_site:
    return joint.JointStream(parts[:1], parts[1])
  return parts[0] if len(parts) == 1 else joint.JointStream(parts)
