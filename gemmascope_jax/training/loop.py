"""The steps of a run.

All members read the same batch: one disk read and one host-to-device copy
serve the whole sweep (Gemma Scope 4.3 shares its data servers for the same
reason). A member takes part in a step if it has made all steps before it, so
members may begin, rest and end at different steps, and each ends as if alone.

The host does not wait for the step that it has just started: what a step gives
is read while the next one runs.
"""

from __future__ import annotations

import collections
import functools
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from absl import logging
from jax.sharding import Mesh

from gemmascope_jax import artifacts, metrics, throughput
from gemmascope_jax.data.streams import feed
from gemmascope_jax.parallel import processes
from gemmascope_jax.training import (
  monitors,
  preemption,
  utilisation,
)
from gemmascope_jax.training.schedule import Schedule
from gemmascope_jax.training.trainee import Trainee
from gemmascope_jax.training.units import Units

_IN_FLIGHT = 1  # steps whose losses have not been read when one is started
_REQUESTS_EVERY_S = 1.0


class NonFiniteError(FloatingPointError):
  """A member's loss became NaN or infinite; the batch was saved."""


class _Given(NamedTuple):
  """What a member's step gives: metrics, and what a log line needs if due."""

  trainee: Trainee
  values: dict[str, jax.Array]
  seen: dict[str, jax.Array] | None


class Loop:
  """Steps members to their ends.

  Args:
    stream: see `gemmascope_jax.data.streams.stream`.
    units: what is read from batches.
    folder: of the run.
    schedule: see `Schedule`.
    mesh: the devices.
    loggers: where lines go.
    finish: called with each trainee that has made all its steps.
  """

  def __init__(
    self,
    stream,
    units: Units,
    folder: pathlib.Path,
    schedule: Schedule,
    mesh: Mesh | None,
    loggers: Sequence[metrics.Logger],
    finish: Callable[[Trainee], None],
  ):
    self._stream, self._units, self._folder = stream, units, folder
    self._schedule, self._mesh, self._loggers = schedule, mesh, loggers
    self._finish = finish
    self._batches = feed.Feed(stream, mesh)
    self._clock = throughput.Meter()
    self._pending: collections.deque[tuple[int, list[_Given]]]
    self._pending = collections.deque()
    self._made: collections.Counter[Trainee] = collections.Counter()
    self._lines: dict[str, dict[str, Any]] = {}  # each member's last
    self._warned: set[tuple[str, str]] = set()
    self._failed: dict[str, str] = {}  # by member, what was not finite
    self._saved_at = self._looked_at = time.monotonic()
    self._fvu_of = 1 / units.y_variance

  def run(self, trainees: Sequence[Trainee]) -> None:
    """Until every trainee has finished or was asked to rest.

    Raises:
      NonFiniteError: the loss of a member is not finite; the others have
        finished.
      PreemptedError: SIGTERM or Ctrl-C came; all is saved.
    """
    for trainee in trainees:
      if trainee.done:  # killed between its last step and its end
        self._end(trainee)
    precision = trainees[0].recipe.matmul_precision
    self._peak = utilisation.peak(precision, self._mesh)
    bar = tqdm.tqdm(
      total=max(trainee.recipe.steps for trainee in trainees),
      initial=min(trainee.step for trainee in trainees),
      desc=f"train {len(trainees)} SAEs",
      unit="step",
      disable=not self._schedule.progress or not processes.is_first(),
    )
    with bar, preemption.notice() as ends:
      while training := [trainee for trainee in trainees if trainee.trains]:
        self._stretch(training, bar, ends)
      self._settle(0)
    if self._failed:
      raise NonFiniteError(
        f"{'; '.join(self._failed.values())}. The batches are saved as"
        f" {self._not_finite('STEP')}; the checkpoints before are untouched,"
        " and the other members went on. Look at the batch for NaN or huge"
        " rows, lower the learning rate, or leave the member out"
      )

  def _stretch(self, training: list[Trainee], bar: Any, ends: Any) -> None:
    """Consecutive steps, in each of which somebody takes part."""
    step, last = _bounds(training)
    bar.update(step - bar.n)
    arriving = self._batches.iterate(step, last)
    try:
      while step < last:
        present = [t for t in training if t.trains and t.step == step]
        if not present:
          return
        with self._clock.waiting("batch"):
          step, batch = next(arriving)
        x, y = self._units.inputs_and_targets(batch)
        self._pending.append((step, [self._start(t, x, y) for t in present]))
        del batch, x, y
        self._settle(_IN_FLIGHT)
        step += 1
        self._between(step, present, ends(step))
        bar.set_postfix_str(monitors.postfix(self._lines), refresh=False)
        bar.update()
    finally:
      arriving.close()

  def _start(self, trainee: Trainee, x: jax.Array, y: jax.Array) -> _Given:
    """Starts a member's step, and its log line if one is due."""
    values = trainee.advance(x, y)
    due = trainee.step % self._schedule.log_every == 0 or trainee.done
    return _Given(trainee, values, trainee.look() if due else None)

  def _settle(self, in_flight: int) -> None:
    """Reads what steps gave, the oldest first, until so many are left.

    A member whose loss or gradient is not finite rests: its state is lost, or
    will be with the next step.
    """
    while len(self._pending) > in_flight:
      step, given = self._pending.popleft()
      # Of one that rests since, only a failed one's steps are not read yet.
      given = [each for each in given if each.trainee.trains]
      if not given:
        continue
      read = lambda each: (each.values["loss"], each.values["gradient_norm"])
      numbers = jax.device_get([read(each) for each in given])
      for each, (loss, gradient) in zip(given, numbers, strict=True):
        if not (np.isfinite(loss) and np.isfinite(gradient)):
          self._give_up(step, each.trainee, float(loss), float(gradient))
        self._made[each.trainee] += 1
      size = self._stream.batch_size
      self._clock.add(size, 4 * size * self._stream.width)
      self._write([each for each in given if each.seen is not None])

  def _give_up(
    self, step: int, trainee: Trainee, loss: float, gradient: float
  ) -> None:
    """Lets a member rest, and keeps the batch that did it."""
    path = self._not_finite(step)
    if processes.is_first() and not path.exists():
      artifacts.write_npy(path, self._stream.batch(step))
    name = trainee.member.name
    what = f"the loss is {loss}"
    if np.isfinite(loss):
      what = f"the gradient's norm is {gradient}"
    self._failed[name] = f"{name}: {what} at step {step}"
    logging.warning("%s; it stops here", self._failed[name])
    trainee.rest()

  def _not_finite(self, step: int | str) -> pathlib.Path:
    return self._folder / f"not_finite_step_{step}.npy"

  def _write(self, due: list[_Given]) -> None:
    """Writes the lines of a step."""
    if not due:
      return
    for each in due:
      each.trainee.saved.check()
    fetched = jax.device_get([(each.values, each.seen) for each in due])
    for each, (values, seen) in zip(due, fetched, strict=True):
      member = each.trainee.member
      self._lines[member.name] = monitors.line(
        member.recipe, member.name, self._fvu_of, values, seen
      )
    timing = monitors.timing(
      self._clock,
      self._batches,
      self._stream.batch_size,
      sum(self._flops(trainee) for trainee in self._made),
      self._peak,
    )
    self._made.clear()
    for each in due:
      line = self._lines[each.trainee.member.name]
      line |= timing
      for logger in self._loggers:
        logger.write(line)
      for warning in line.get("warnings", ()):
        # Without what changes from line to line: "95% of the latents ...".
        kind = (line["name"], warning.split("%")[-1])
        if kind not in self._warned:
          self._warned.add(kind)
          logging.warning(
            "%s, step %d: %s", line["name"], line["step"], warning
          )

  def _flops(self, trainee: Trainee) -> float:
    """Of the steps that a member has made since the last line."""
    cost = functools.partial(
      utilisation.step_flops, trainee.recipe, *trainee.widths
    )
    dense, active = 1.0, 0.0
    if trainee.is_sparse and trainee.member.name in self._lines:
      line = self._lines[trainee.member.name]
      dense, active = line["dense_step_share"], line["l0_mean"]
    each = dense * cost() + (1 - dense) * cost(active)
    return self._made[trainee] * each

  def _between(
    self,
    step: int,
    present: list[Trainee],
    ends: signal.Signals | None,
  ) -> None:
    """What happens before the next step: checkpoints, ends, requests."""
    timed, stopping = self._requests(step, present)
    done = [trainee for trainee in present if trainee.done]
    due = step % self._schedule.checkpoint_every == 0
    saving = present if due or timed or ends else [*done, *stopping]
    if not saving:
      return
    with self._clock.waiting(monitors.CHECKPOINT):
      self._settle(0)
      going = lambda trainees: [each for each in trainees if each.trains]
      for trainee in going(saving):
        trainee.save(self._schedule.keep_best)
      self._saved_at = time.monotonic()
      for trainee in going(done):
        self._end(trainee)
    for trainee in going(stopping):
      logging.warning(
        "%s rests at step %d: delete %s and run the same command again to go"
        " on",
        trainee.member.name,
        trainee.step,
        trainee.member.stop,
      )
      trainee.rest()
    if ends:
      raise preemption.PreemptedError(
        f"asked to end ({ends.name}): everything is saved, at step {step}; the"
        " same command goes on from there",
        ends,
      )

  def _end(self, trainee: Trainee) -> None:
    self._finish(trainee)
    trainee.rest()

  def _requests(
    self, step: int, present: list[Trainee]
  ) -> tuple[bool, list[Trainee]]:
    """Whether it is time for a checkpoint, and who is asked to rest."""
    now = time.monotonic()
    if jax.process_count() > 1:  # all must look at the same step
      if step % self._schedule.log_every:
        return False, []
    elif now - self._looked_at < _REQUESTS_EVERY_S:
      return False, []
    self._looked_at = now
    seconds = 60 * self._schedule.checkpoint_minutes
    timed, *stops = processes.agreed(
      [
        bool(seconds) and now - self._saved_at > seconds,
        *(t.member.stop.exists() and not t.done for t in present),
      ]
    )
    return timed, [t for t, stop in zip(present, stops, strict=True) if stop]


def _bounds(training: Sequence[Trainee]) -> tuple[int, int]:
  """The first step to make, and the first after it that nobody makes."""
  first = last = min(trainee.step for trainee in training)
  for trainee in sorted(training, key=lambda trainee: trainee.step):
    if trainee.step <= last:
      last = max(last, trainee.recipe.steps)
  return first, last
