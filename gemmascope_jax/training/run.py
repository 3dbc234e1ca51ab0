"""A training run: its folder, and what makes it that run and no other.

A checkpoint holds every member's state and the step; the batch of a step is a
pure function of the seed and the step, so the stream has no state of its own
and a run that was killed ends in the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence

from jax.sharding import Mesh

from gemmascope_jax import artifacts, checkpoints, parallel
from gemmascope_jax.data.lock import write_lock
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae import sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.load import MEMBERS
from gemmascope_jax.training import endpoints, loop

RUN = "run.json"
CHECKPOINTS = "checkpoints"
INITIAL = "initial"
_LOCK = "writing.lock"


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When the loop logs and saves; it never changes what is learned.

  Attributes:
    log_every: steps between lines of metrics.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the latest stay on disk.
    progress: show a progress bar.
  """

  log_every: int = 100
  checkpoint_every: int = 5_000
  keep_checkpoints: int = 2
  progress: bool = True

  def __post_init__(self):
    for field in ("log_every", "checkpoint_every", "keep_checkpoints"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"train.{field} is {getattr(self, field)}; expected at least 1"
        )


def train(
  stream,
  recipes: Sequence[Recipe],
  folder: str | os.PathLike,
  *,
  seed: int = 0,
  schedule: Schedule | None = None,
  mesh: Mesh | None = None,
) -> list[pathlib.Path]:
  """Trains every recipe on one stream; resumes what a kill left.

  Writes into `folder`: `run.json` (what is being trained), `metrics.jsonl`,
  `checkpoints/`, and at the end one folder a member under `saes/`, folded into
  raw activation space, `params.npz` and `sae.json`; under `initial/` the same
  before the first step, for the untrained baseline.

  Args:
    stream: batches of activations, see `gemmascope_jax.data.streams.stream`.
    recipes: the members; they share batch size and number of steps.
    folder: where the run lives.
    seed: of the initial weights. Members of the same width start equal.
    schedule: see `Schedule`.
    mesh: devices to train on: batch rows are split over its "data" axis and
      latents over its "model" axis; None: the default device. A run may go on
      on another mesh than it began on, to rounding.

  Returns:
    The members' folders under `saes/`, in the order of `recipes`.

  Raises:
    ValueError: recipes that can't share a stream, two that are the same, or a
      folder that holds another run.
    NonFiniteError: the loss of a member is not finite.
  """
  schedule = schedule or Schedule()
  folder = pathlib.Path(folder)
  sweep.check(recipes, stream.batch_size)
  folder.mkdir(parents=True, exist_ok=True)
  with write_lock(folder, _LOCK):
    return _train(stream, recipes, folder, seed, schedule, mesh)


def _train(stream, recipes, folder, seed, schedule, mesh):
  """`train`, with the folder locked."""
  if not (folder / RUN).exists():
    artifacts.write_json(folder / RUN, _description(stream, recipes, seed))
  require_run(folder, stream, recipes, seed)
  finished = members(folder, recipes)
  initial = [folder / INITIAL / path.name for path in finished]
  if all(gemma_scope.is_whole(path) for path in [*finished, *initial]):
    return finished
  scale = endpoints.scale(stream, recipes[0])
  save = functools.partial(endpoints.save, stream, scale)
  states = endpoints.initial_states(stream, recipes, scale, seed)
  if mesh is not None:
    states = parallel.shard(states, mesh, parallel.SAE_RULES)
  steps = recipes[0].steps
  for path, recipe, state in zip(initial, recipes, states, strict=True):
    if not gemma_scope.is_whole(path):
      save(recipe, state, path)
  with checkpoints.Run(
    folder / CHECKPOINTS, keep=schedule.keep_checkpoints
  ) as saved:
    start = saved.latest or 0
    if start:
      states = saved.restore(start, states)
    loop.run(
      stream, recipes, states, scale, start, folder, schedule, saved, mesh
    )
    if saved.latest != steps:
      saved.save(steps, states)
  for path, recipe, state in zip(finished, recipes, states, strict=True):
    save(recipe, state, path)
  return finished


def members(
  folder: str | os.PathLike, recipes: Sequence[Recipe]
) -> list[pathlib.Path]:
  """Where the finished SAEs of a run in `folder` are, in order."""
  return [
    pathlib.Path(folder) / MEMBERS / f"{index:02d}_{_slug(recipe)}"
    for index, recipe in enumerate(recipes)
  ]


def _description(stream, recipes, seed) -> dict:
  """What determines every byte of a run's SAEs."""
  values = {
    "recipes": [dataclasses.asdict(recipe) for recipe in recipes],
    "seed": seed,
    "site": stream.site,
    "width": stream.width,
    "data": stream.provenance,
    "stream": stream.fingerprint,
  }
  return json.loads(artifacts.canonical_json(values))


def require_run(
  folder: str | os.PathLike, stream, recipes: Sequence[Recipe], seed: int
) -> None:
  """Refuses a folder whose run is not this one; arguments as `train`.

  Raises:
    ValueError: the run there has other recipes, seed or data.
  """
  description = _description(stream, recipes, seed)
  found = artifacts.read_json(pathlib.Path(folder) / RUN)
  differs = artifacts.differences(found, description)
  if differs:
    raise ValueError(
      f"{folder} holds another run: {'; '.join(differs)}. Choose another"
      " workdir, or delete that folder to train anew"
    )


def _slug(recipe: Recipe) -> str:
  return recipe.name.replace(" ", "_").replace("=", "_")
