"""`harvest.batch` 0: chosen from the devices' memory, once for each run."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gemmascope_jax import artifacts, parallel
from gemmascope_jax.data.stores import batch_choice, footprint
from gemmascope_jax.experiment import settings
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.load import open_source
from gemmascope_jax.parallel import processes

RECORD = "harvest_batch.json"


def harvest_batch(
  config: Config, names: tuple[str, ...], mesh: Mesh | None, held: int
) -> int:
  """Sequences in one forward pass, as the config says or as many as fit.

  A choice is said, and kept in the work directory: batches decide a store's
  bytes, so a run that is started again, on other devices even, goes on with the
  same. Of several processes all call, and the first one's counts.

  Args:
    config: the run's.
    names: sites that the pass gives.
    mesh: the model's devices.
    held: passes whose activations are there at once.

  Raises:
    ValueError: it can't be chosen, or not even the smallest fits.
  """
  ways = 1 if mesh is None else mesh.shape[parallel.DATA]
  if config.harvest.batch:
    if config.harvest.batch % ways and processes.is_first():
      print(
        f"harvest.batch is {config.harvest.batch}, which is not split over the"
        f" {ways} devices of mesh.data: all of them do the same; a multiple of"
        f" {ways} would be",
        file=sys.stderr,
      )
    return config.harvest.batch
  if config.harvest.parts > 1:
    raise ValueError(
      f"harvest.batch is 0, to be chosen from memory, but harvest.parts is"
      f" {config.harvest.parts}, and all have to use the same: give its number"
    )
  path = settings.workdir(config) / RECORD
  key = artifacts.fingerprint([config.lm.to_dict(), list(names)])
  record = artifacts.read_json(path) if path.exists() else {}
  if record.get("key") == key and record.get("window") == config.data.window:
    return _of_the_first(record["batch"])
  found, said = batch_choice.choose(
    functools.partial(_measure, config, names, mesh, held),
    ways=ways,
    window=config.data.window,
    limit=batch_choice.memory_limit(mesh, config.mesh.memory_gib),
  )
  if processes.is_first():
    print(said, file=sys.stderr)
    record = {"key": key, "window": found.window, "batch": found.batch}
    artifacts.write_json(path, record | {"why": said})
  return _of_the_first(found.batch)


def _of_the_first(batch: int) -> int:
  if jax.process_count() == 1:
    return batch
  return int(multihost_utils.broadcast_one_to_all(np.int32(batch)))


def _measure(
  config: Config,
  names: tuple[str, ...],
  mesh: Mesh | None,
  held: int,
  batch: int,
  window: int,
) -> Any:
  layers = 1 + max(sites.parse(name).layer for name in names)
  return footprint.measure(
    open_source(config.lm.source, layers).config,
    names,
    batch=batch,
    window=window,
    compute_dtype=config.lm.dtype,
    dtype=config.harvest.dtype,
    mesh=mesh,
    fully_sharded=config.mesh.fully_sharded,
    held=held,
  )
