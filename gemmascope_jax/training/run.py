"""A training run: its folder, and what makes it that run and no other.

Each member has a checkpoint of its own, with its state and step; the batch of a
step is a pure function of the seed and the step, so the stream has no state of
its own and a run that was killed ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Sequence

import jax
from absl import logging
from jax.sharding import Mesh

from gemmascope_jax import artifacts, checkpoints, metrics
from gemmascope_jax.data.lock import write_lock
from gemmascope_jax.parallel import processes
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae import sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.training import (
  endpoints,
  loop,
  roster,
  trainee,
)
from gemmascope_jax.training.schedule import Schedule
from gemmascope_jax.training.units import Units

RUN = "run.json"
METRICS = "metrics.jsonl"
_LOCK = "writing.lock"


def train(
  stream,
  recipes: Sequence[Recipe],
  folder: str | os.PathLike,
  *,
  seed: int = 0,
  schedule: Schedule | None = None,
  mesh: Mesh | None = None,
  loggers: Sequence[str] = (),
) -> list[pathlib.Path]:
  """Trains every recipe on one stream; resumes what was left.

  Writes into `folder`:

    run.json                   the stream and the seed: what makes it this run
    members.json               the members asked for now, in order
    members/NAME/recipe.json   of every member ever asked for
    metrics.jsonl              a line a member every `log_every` steps
    checkpoints/NAME/STEP      each member's own
    initial/NAME, saes/NAME    SAEs before the first step and when finished,
                               folded into raw activation space

  Members that have finished are not trained again. One that is new to the run
  starts at step 0, whatever the others have done, and ends in the same bytes
  as if alone. One that is not asked for rests. `touch members/NAME/stop` makes
  one rest while the others go on, until that file is deleted.

  Args:
    stream: batches of activations, see `gemmascope_jax.data.streams.stream`.
    recipes: the members; they share batch size and normalisation.
    folder: where the run lives.
    seed: of the initial weights. Members of the same width and seed of their
      own start equal.
    schedule: see `Schedule`.
    mesh: devices to train on: batch rows are split over its "data" axis and
      latents over its "model" axis; None: the default device. A run may go on
      on another mesh than it began on, to rounding.
    loggers: where lines go besides: "tensorboard", "wandb".

  Returns:
    The folders under `saes/` of members that have finished, in the order of
    `recipes`: all but those that were asked to rest.

  Raises:
    ValueError: recipes that can't share a stream, two that are the same, a
      folder that holds another run, or a mesh that leaves a process out.
    ImportError: a logger's package is not installed.
    NonFiniteError: the loss of a member is not finite; the others have
      finished.
    PreemptedError: the process got SIGTERM or Ctrl-C; everything is saved.
    OutOfDiskError: there is no room for a checkpoint; those before are whole.
  """
  schedule = schedule or Schedule()
  folder = pathlib.Path(folder)
  sweep.check(recipes, stream.batch_size)
  for recipe in recipes:
    Units.of(stream, recipe)  # or its error
  metrics.check(loggers)
  processes.check(mesh)
  lock = contextlib.nullcontext()
  if processes.is_first():
    lock = write_lock(folder, _LOCK)
  with lock:
    return _train(stream, recipes, folder, seed, schedule, mesh, loggers)


def _train(stream, recipes, folder, seed, schedule, mesh, loggers):
  """`train`, with the folder locked."""
  if processes.is_first():
    if not (folder / RUN).exists():
      described = _description(stream, seed)
      artifacts.write_json(folder / RUN, described | {"model": stream.model})
    require_run(folder, stream, seed)
    members = roster.members(folder, recipes)
    for member in members:
      if member.is_namesake:
        logging.warning(
          "%s begins at step 0 as another SAE: %s",
          member.name,
          roster.nearest(member),
        )
    roster.enrol(folder, members)
  processes.wait("enrolled")
  members = roster.members(folder, recipes)
  # Looked at before anybody writes, so that all processes see the same.
  whole = processes.agreed([member.is_whole for member in members])
  rests = processes.agreed([member.stop.exists() for member in members])
  begun = processes.agreed([_has_begun(member) for member in members])
  open_ = []
  for i, member in enumerate(members):
    if not whole[i] and rests[i]:
      logging.warning(
        "%s rests: delete %s for it to go on", member.name, member.stop
      )
    elif not whole[i]:
      open_.append((member, begun[i]))
  if open_:
    _finish(stream, open_, folder, seed, schedule, mesh, loggers)
    processes.wait("finished")
  return [member.finished for member in members if member.is_whole]


def _has_begun(member: roster.Member) -> bool:
  return gemma_scope.is_whole(member.initial)


def _finish(stream, members, folder, seed, schedule, mesh, loggers) -> None:
  """Trains members, given with whether they have begun."""
  units = Units.of(stream, members[0][0].recipe)
  sample = functools.cache(lambda: endpoints.sample(stream, units))
  save = lambda member, state, where: endpoints.save(
    stream, units, member.name, member.recipe, state, where
  )

  def begin(member, begun, saved) -> trainee.Trainee:
    if saved.latest is None or not begun:
      state = endpoints.initial_state(
        member.recipe, sample(), seed, mesh, units
      )
      if not begun:
        save(member, state, member.initial)
    if saved.latest is None:
      return trainee.start(member, state, saved, mesh)
    shapes = jax.eval_shape(
      sweep.init_fn(member.recipe),
      jax.random.key(seed),
      endpoints.sample_shapes(units),
    )
    return trainee.resume(member, shapes, saved, mesh)

  with contextlib.ExitStack() as stack:
    trainees = []
    for member, begun in members:
      saved = checkpoints.Run(
        member.checkpoints,
        keep=schedule.keep_checkpoints,
        keep_best=bool(schedule.keep_best),
      )
      trainees.append(begin(member, begun, stack.enter_context(saved)))
    opened = []
    if processes.is_first():
      first_steps = {each.member.name: each.step for each in trainees}
      about = _description(stream, seed)
      opened = stack.enter_context(
        metrics.open_loggers(folder / METRICS, first_steps, loggers, about)
      )
    finish = lambda each: save(each.member, each.state, each.member.finished)
    loop.Loop(stream, units, folder, schedule, mesh, opened, finish).run(
      trainees
    )


def _description(stream, seed) -> dict:
  """What all members share and that determines every byte of theirs."""
  values = {
    "seed": seed,
    "site": stream.site,
    "width": stream.width,
    "batch_size": stream.batch_size,
    "shuffle": stream.shuffle.to_dict(),
    "data": stream.provenance,
    "stream": stream.fingerprint,
  }
  return json.loads(artifacts.canonical_json(values))


def require_run(folder: str | os.PathLike, stream, seed: int) -> None:
  """Refuses a folder whose run is not this one; arguments as `train`.

  Raises:
    ValueError: the run there has another seed or other data.
  """
  found = artifacts.read_json(pathlib.Path(folder) / RUN)
  found.pop("model", None)  # a label, for people
  differs = artifacts.differences(found, _description(stream, seed))
  if differs:
    # The stream's hash says nothing where what it is made of differs.
    named = [each for each in differs if not each.startswith("its stream is")]
    raise ValueError(
      f"{folder} holds another run: {'; '.join(named or differs)}. Choose"
      " another workdir, or go back to those settings"
    )
