"""Batches that are ready, shared by all trainers of one stream.

A bounded buffer (Gemma Scope 3.3.2): a thread reads ahead of the fastest
trainer, two trainers that ask for one step cause one reading, and the oldest
batch gives way to a new one.

Patience keeps that one reading enough for all. A batch that a trainer still
needs does not give way, so a trainer that is a whole buffer ahead of another
waits for it; but nobody waits for a trainer that has taken nothing for
`patience` seconds (it is busy, or gone), nor longer than that for one that has
fallen out of the buffer, or starts far behind, and catches up. What such
trainers missed they get all the same, read for them alone.

Memory: the buffer's bytes, a few batches read for late trainers, and one batch
for each trainer that is being sent it.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from gemmascope_jax.throughput import Meter

_MOST = 4096  # batches in the buffer, however small: each look goes over all
_LATE = 4  # batches kept that were read for trainers out of the buffer
_LOOK = 0.25  # seconds between looks at the clock and at cancelled calls
_LIVE = 30.0  # seconds; with patience 0, how long a silent trainer leads


class Ended(Exception):
  """The trainer left, or the buffer was closed."""


class Replaced(Ended):
  """Another connection has the trainer's name now."""


class Batch(NamedTuple):
  """A server's rows of one batch.

  Attributes:
    step: of the batch.
    positions: int64 [k], ascending.
    rows: [k, D] in stored form.
  """

  step: int
  positions: np.ndarray
  rows: np.ndarray


class Source(Protocol):
  """Where batches are read.

  Attributes:
    batch_bytes: of a batch, at most.
  """

  batch_bytes: int

  def following(self, step: int) -> int:
    """The first step from `step` on that has rows here."""

  def read(self, step: int) -> Batch:
    """Reads a batch; called by several threads."""


class Trainer:
  """What is known of one that takes batches.

  Attributes:
    name: chosen by it; the same after a restart.
    step: the next that it takes.
    stop: the step after the last that it takes, or None.
    meter: rows that it took, and what its server thread waited for: "disk",
      "other trainers", or the "trainer" itself.
    taken_at: when it last took a batch, or came.
    late_since: since when it reads what the others are past; None: it does not.
    connected: whether its connection, as far as is known, still stands.
    gone: whether a newer connection has its name, or it left.
  """

  def __init__(self, name: str, step: int, stop: int | None):
    self.name, self.step, self.stop = name, step, stop
    self.meter = Meter()
    self.taken_at = time.monotonic()
    self.late_since: float | None = None
    self.connected = True
    self.gone = False


class ReadyBatches:
  """The buffer of one stream; its methods are called from many threads.

  Attributes:
    rows_read: rows read from the source so far.
    bytes_read: their bytes.
  """

  def __init__(
    self, source: Source, capacity: Callable[[], int], patience: float
  ):
    """Starts a thread that ends with `close`.

    Args:
      source: where batches are read.
      capacity: gives the bytes that the buffer may hold now; one batch fits
        whatever it says.
      patience: seconds, see above; 0: nobody waits for another.
    """
    self._source, self._capacity = source, capacity
    self._patience = patience
    self._changed = threading.Condition()
    self._ready: dict[int, Batch] = {}
    self._late: collections.OrderedDict[int, Batch] = collections.OrderedDict()
    self._reading: dict[int, bool] = {}  # step: whether for a late trainer
    self._trainers: dict[str, Trainer] = {}
    self._closed = False
    self.rows_read = self.bytes_read = 0
    self._thread = threading.Thread(
      target=self._read_ahead, name="ReadyBatches", daemon=True
    )
    self._thread.start()

  def attach(self, name: str, step: int, stop: int | None = None) -> Trainer:
    """A trainer begins, or comes back, at a step, to go on to `stop`."""
    with self._changed:
      trainer = Trainer(name, step, stop)
      before = self._trainers.get(name)
      if before is not None:
        before.gone = True
        trainer.meter = before.meter
        trainer.late_since = before.late_since  # no new grace for restarting
      self._trainers[name] = trainer
      self._forget_the_dead()
      self._changed.notify_all()
      return trainer

  def leave(self, name: str) -> None:
    """A trainer says that it will take no more."""
    with self._changed:
      trainer = self._trainers.pop(name, None)
      if trainer is not None:
        trainer.gone = True
        self._changed.notify_all()

  def take(self, trainer: Trainer, seconds: float) -> Batch | None:
    """The trainer's next batch; a batch may be of no rows.

    Args:
      trainer: from `attach`.
      seconds: how long to wait for it; then None is returned. The call is
        then to be repeated.

    Raises:
      whatever reading raises.
      Ended: there is nothing more for this connection.
    """
    deadline = time.monotonic() + seconds
    with self._changed:
      trainer.step = step = self._source.following(trainer.step)
      while True:
        if trainer.gone and self._trainers.get(trainer.name):
          raise Replaced(
            f"another trainer connected as {trainer.name}: give each a name of"
            " its own"
          )
        if trainer.gone or self._closed:
          raise Ended
        batch = self._ready.get(step)
        if batch is not None:
          trainer.late_since = None
          break
        batch = self._late.get(step)
        if batch is not None:
          break
        why = "disk"
        if step not in self._reading:
          late = self._is_late(trainer)
          if late or self._has_room(step):
            batch = self._read(step, late, trainer)
            break
          why = "other trainers"
        left = deadline - time.monotonic()
        if left <= 0:
          return None
        with trainer.meter.waiting(why):
          self._changed.wait(min(left, _LOOK))
      trainer.step = step + 1
      trainer.taken_at = time.monotonic()
      self._changed.notify_all()
      return batch

  def peek(self, step: int) -> Batch:
    """A batch for a reader that nobody needs to wait for."""
    with self._changed:
      while not self._closed:
        batch = self._ready.get(step) or self._late.get(step)
        if batch is not None:
          return batch
        if step not in self._reading:
          return self._read(step, True, None)
        self._changed.wait(_LOOK)
      raise Ended

  def trainers(self) -> list[Trainer]:
    """Those that have not left, the fastest first."""
    with self._changed:
      found = list(self._trainers.values())
    return sorted(found, key=lambda trainer: -trainer.step)

  def filled(self) -> int:
    """Bytes in the buffer."""
    with self._changed:
      return sum(
        batch.rows.nbytes
        for batch in (*self._ready.values(), *self._late.values())
      )

  def idle_since(self) -> float:
    """When a trainer last took something; `time.monotonic`'s seconds.

    Minus infinity once all have left.
    """
    with self._changed:
      times = [trainer.taken_at for trainer in self._trainers.values()]
    return max(times, default=float("-inf"))

  def close(self) -> None:
    """Ends the thread and every `take`; drops the batches."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
    self._thread.join()
    self._ready.clear()
    self._late.clear()

  # What follows is called with the condition held.

  def _forget_the_dead(self) -> None:
    """Drops trainers whose connection ended long ago without a good-bye."""
    grace = max(self._patience, _LIVE)
    for name, trainer in list(self._trainers.items()):
      silent = time.monotonic() - trainer.taken_at
      if not trainer.connected and silent > grace:
        del self._trainers[name]

  def _read(self, step: int, late: bool, trainer: Trainer | None) -> Batch:
    """Reads a batch, once for all who ask meanwhile."""
    self._reading[step] = late
    counted = contextlib.nullcontext()
    if trainer is not None:
      counted = trainer.meter.waiting("disk")
      if late and trainer.late_since is None:
        trainer.late_since = time.monotonic()
    self._changed.release()
    try:
      with counted:
        batch = self._source.read(step)
    finally:
      self._changed.acquire()
      del self._reading[step]
      self._changed.notify_all()
    self.rows_read += len(batch.rows)
    self.bytes_read += batch.rows.nbytes
    if late:
      self._late[step] = batch
      while len(self._late) > _LATE:
        self._late.popitem(last=False)
    else:
      self._ready[step] = batch
    return batch

  def _is_late(self, trainer: Trainer) -> bool:
    """Whether another one has gone on beyond what this one takes next."""
    return any(
      other.step > trainer.step
      for other in self._trainers.values()
      if other is not trainer and self._is_live(other)
    )

  def _is_live(self, trainer: Trainer) -> bool:
    silent = time.monotonic() - trainer.taken_at
    return silent < (self._patience or _LIVE)

  def _is_waited_for(self, trainer: Trainer) -> bool:
    now, since = time.monotonic(), trainer.late_since
    return now - trainer.taken_at < self._patience and (
      since is None or now - since < self._patience
    )

  def _has_room(self, wanted: int | None = None) -> bool:
    """Whether one more batch fits, once those that may are gone.

    Args:
      wanted: the step that a trainer waits for; None: reading ahead.
    """
    size = self._source.batch_bytes
    coming = 1 + sum(not late for late in self._reading.values())
    too_many = size * coming
    too_many += sum(batch.rows.nbytes for batch in self._ready.values())
    too_many -= max(self._capacity(), size)
    too_many = max(too_many, size * (len(self._ready) + coming - _MOST))
    if too_many <= 0:
      return True
    needed = [
      trainer.step
      for trainer in self._trainers.values()
      if self._is_waited_for(trainer)
    ]
    leader = self._leader()
    if leader is not None:
      needed.append(leader.step)
    steps = sorted(self._ready)
    going = [step for step in steps if not needed or step < min(needed)]
    if wanted is not None:  # comes before what was read ahead of it
      going += [step for step in reversed(steps) if step > wanted]
    for step in going:
      if too_many <= 0 or step not in self._ready:
        break
      too_many -= self._ready.pop(step).rows.nbytes
    return too_many <= 0

  def _leader(self) -> Trainer | None:
    """The fastest of those that take batches at present."""
    live = filter(self._is_live, self._trainers.values())
    return max(live, key=lambda trainer: trainer.step, default=None)

  def _next_ahead(self) -> int | None:
    """The step to read ahead, if there is one, and room for it."""
    leader = self._leader()
    if leader is None:
      return None
    ahead = max(1, self._capacity() // self._source.batch_bytes // 4)
    step = leader.step
    for _ in range(ahead):
      step = self._source.following(step)
      if leader.stop is not None and step >= leader.stop:
        return None
      if not (
        step in self._ready or step in self._late or step in self._reading
      ):
        return step if self._has_room() else None
      step += 1
    return None

  def _read_ahead(self) -> None:
    with self._changed:
      while not self._closed:
        step = self._next_ahead()
        if step is None:
          self._changed.wait(_LOOK)
          continue
        try:
          self._read(step, False, None)
        except Exception:  # noqa: BLE001 - raised again by who takes it
          self._changed.wait(_LOOK)
