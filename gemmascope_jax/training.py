"""The training loop: one stream, every member of a sweep, exact resume.

All members read the same batch: one disk read and one host-to-device copy
serve the whole sweep (Gemma Scope 4.3 shares its data servers for the same
reason). A checkpoint holds every member's state and the step; the batch of a
step is a pure function of the seed and the step, so the stream has no state of
its own and a run that was killed ends in the same bytes.

Letters: B batch rows, D width of the site, M latents.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from gemmascope_jax import artifacts, checkpoints, metrics, parallel, throughput
from gemmascope_jax.data.lock import write_lock
from gemmascope_jax.data.streams import feed
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae import fold, sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.load import MEMBERS
from gemmascope_jax.sae.sae import SAE, SAEConfig

RUN = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
INITIAL = "initial"
_LOCK = "writing.lock"
# A latent that has not fired for this many rows counts as dead in the logs.
_DEAD_AFTER_ROWS = 200_000
# Rows from which data-dependent starting values are measured.
_SAMPLE_ROWS = 8_192


class NonFiniteError(FloatingPointError):
  """The loss became NaN or infinite; the batch was saved."""


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
  scale = _scale(stream, recipes[0])
  save = functools.partial(_save_member, stream, scale)
  states = _initial_states(stream, recipes, scale, seed)
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
    _loop(stream, recipes, states, scale, start, folder, schedule, saved, mesh)
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


def _loop(stream, recipes, states, scale, start, folder, schedule, saved, mesh):
  """Runs steps start..steps-1, changing the list `states` in place."""
  steps = recipes[0].steps
  coefficients = [jnp.float32(r.sparsity_coefficient) for r in recipes]
  writer = metrics.JsonlWriter(folder / METRICS, first_step=start)
  bar = tqdm.tqdm(
    total=steps,
    initial=start,
    desc=f"train {len(recipes)} SAEs",
    unit="step",
    disable=not schedule.progress or jax.process_index() > 0,
  )
  clock, pending = throughput.Meter(), None
  batches = feed.Feed(stream, mesh)
  arriving = batches.iterate(start, steps)
  try:
    for _ in range(start, steps):
      with clock.waiting("batch"):
        step, batch = next(arriving)
      x = batch / jnp.float32(scale)
      found = []
      for index, recipe in enumerate(recipes):
        states[index], values = sweep.step_fn(recipe, mesh)(
          states[index], x, coefficients[index]
        )
        found.append(values)
      clock.add(len(batch), batch.nbytes)
      del batch, x
      # The previous step's losses are read only now that this step has been
      # dispatched, so the device is never idle.
      if pending:
        _settle(stream, folder, recipes, *pending)
      pending = (step, found)
      done = step + 1
      if done % schedule.log_every == 0 or done == steps:
        _settle(stream, folder, recipes, *pending)
        timing = _timing(clock, batches)
        for index, recipe in enumerate(recipes):
          line = _line(stream, scale, recipe, step, states[index], found[index])
          writer.write({"member": index, "name": recipe.name} | line | timing)
        bar.set_postfix_str(_postfix(found, timing), refresh=False)
      bar.update()
      if done % schedule.checkpoint_every == 0 and done < steps:
        _settle(stream, folder, recipes, *pending)
        saved.save(done, states)
    if pending:
      _settle(stream, folder, recipes, *pending)
  finally:
    arriving.close()
    bar.close()
    writer.close()


def _timing(clock: throughput.Meter, batches: feed.Feed) -> dict:
  """Rates since the last line, and which stage is the limit."""
  step, fed = clock.read(), batches.meter.read()
  shares = feed.limit(fed["waited"], step["waited"].get("batch", 0.0))
  return {
    "rows_per_second": step["rows_per_second"],
    "bytes_per_second": step["bytes_per_second"],
    "time": shares,
    "limit": max(shares, key=shares.get),
  }


def _settle(stream, folder, recipes, step, found) -> None:
  """Reads the losses of a dispatched step; stops if one is not finite."""
  for recipe, values in zip(recipes, found, strict=True):
    loss = float(values["loss"])
    if np.isfinite(loss):
      continue
    path = folder / f"not_finite_step_{step}.npy"
    artifacts.write_npy(path, stream.batch(step))
    raise NonFiniteError(
      f"{recipe.name}: the loss is {loss} at step {step}. The batch that did it"
      f" is saved at {path}; the last checkpoint is untouched. Look at the"
      " batch for NaN or huge rows, or lower the learning rate"
    )


def _line(stream, scale, recipe, step, state, values) -> dict[str, float]:
  """One member's metrics at one step."""
  line = {key: float(value) for key, value in values.items()}
  variance = stream.mean_square_norm - float(np.square(stream.mean).sum())
  return {
    "step": step,
    "rows": (step + 1) * recipe.batch_size,
    **line,
    "fvu": line["squared_error"] * scale**2 / variance,
    "dead_fraction": _dead_fraction(recipe, state),
  }


def _dead_fraction(recipe, state) -> float:
  """Share of latents that have not fired lately, or never."""
  steps = int(state.step)
  rows = steps * recipe.batch_size
  fired = np.asarray(state.last_fired, np.int64)  # rows pass 2^31
  silent = np.where(fired < 0, steps, steps - 1 - fired) * recipe.batch_size
  return float((silent >= min(_DEAD_AFTER_ROWS, max(rows, 1))).mean())


def _postfix(found, timing) -> str:
  l0 = " ".join(f"{float(values['l0']):.0f}" for values in found)
  limit = timing["limit"]
  return f"L0 {l0}, limit: {limit} ({timing['time'][limit]:.0%})"


def _scale(stream, recipe: Recipe) -> float:
  """C, the root of the site's mean square norm (Gemma Scope 3.1)."""
  return (
    math.sqrt(stream.mean_square_norm) if recipe.normalise == "rms" else 1.0
  )


def _initial_states(stream, recipes, scale, seed) -> list:
  """Every member before its first step, from a sample of the stream."""
  rows = min(_SAMPLE_ROWS, stream.rows)
  batches = math.ceil(rows / stream.batch_size)
  sample = np.concatenate([x for _, x in stream.iterate(0, batches)])
  sample = jnp.asarray(sample[:rows]) / jnp.float32(scale)
  mean = jnp.asarray(stream.mean / scale, jnp.float32)
  key = jax.random.key(seed)
  states = [sweep.init_fn(recipe)(key, sample, mean) for recipe in recipes]
  # Each member owns its buffers, because its step is given them to overwrite.
  return [jax.tree.map(jnp.copy, state) for state in states]


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


def _save_member(stream, scale, recipe, state, folder) -> None:
  """Folds one member and writes it with its provenance."""
  provenance = {
    "recipe": dataclasses.asdict(recipe),
    "name": recipe.name,
    "steps": int(state.step),
    "rows": int(state.step) * recipe.batch_size,
    "dead_fraction": _dead_fraction(recipe, state),
    "dead_after_rows": _DEAD_AFTER_ROWS,
    "normalisation": {"scale": scale},
    "stream": stream.fingerprint,
    **stream.provenance,
  }
  sae = SAE(
    params=fold.fold(state.params, scale, recipe.pre_encoder_bias),
    config=SAEConfig(
      family=recipe.family,
      site=stream.site,
      model=stream.model,
      token_policy=stream.policy,
      provenance=artifacts.canonical_json(provenance),
    ),
  )
  gemma_scope.save(sae, folder)
