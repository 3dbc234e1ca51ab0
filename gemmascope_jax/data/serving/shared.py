"""One stream of a server, as all who read it share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from gemmascope_jax.data.serving.owned_steps import OwnedSteps
from gemmascope_jax.data.serving.protocol import Ticket
from gemmascope_jax.data.serving.ready import Batch, Ended, ReadyBatches
from gemmascope_jax.data.streams.stream import StoreStream
from gemmascope_jax.throughput import Meter

_ON_ITS_WAY = 8  # batches


class Sent(NamedTuple):
  """A server's rows of one batch, or of a part of it, on their way.

  Attributes:
    step: of the batch.
    positions: int64 [k], ascending, within the part.
    rows: [k, D] in stored form.
    meter: of who gets them; `waiting` for that one is to be counted.
  """

  step: int
  positions: np.ndarray
  rows: np.ndarray
  meter: Meter


class SharedStream:
  """The batches of one (site, batch size, shuffle), read once for all.

  Attributes:
    stream: what is read.
    ready: its buffer, and who takes from it.
    batch_bytes: of the owned rows of a batch, at most.
    rows_served: rows given to all together; bytes_served: their bytes.
  """

  def __init__(self, stream: StoreStream, patience: float):
    """Begins with room for one batch; ends with `ready.close()`.

    Args:
      stream: what to read, of this server's rows.
      patience: seconds, see `ready`.
    """
    self.stream = stream
    self._steps = OwnedSteps(stream.order, stream.owned)
    self.batch_bytes = (
      min(stream.batch_size, stream.owned[1] - stream.owned[0])
      * stream.width
      * stream.dtype.itemsize
    )
    self.rows_served = self.bytes_served = 0
    self._lock = threading.Lock()
    self._capacity = 0
    self.ready = ReadyBatches(self, lambda: self._capacity, patience)

  def resize(self, capacity: int) -> None:
    """Sets the bytes that ready batches may take from now on."""
    self._capacity = capacity
    # Memory to be used again: what the buffer holds and what is on its way.
    self.stream.buffers.keep = capacity // self.batch_bytes + _ON_ITS_WAY

  def following(self, step: int) -> int:
    """See `ready.Source`."""
    return self._steps.following(step)

  def read(self, step: int) -> Batch:
    """See `ready.Source`."""
    batch = Batch(step, *self.stream.stored(step))
    self.stream.read_ahead(step)
    return batch

  def send(
    self, ticket: Ticket, cancelled: Callable[[], bool], alive: float
  ) -> Iterator[Sent | None]:
    """What a ticket asks for; None: nothing yet, a sign of life is due.

    Args:
      ticket: of this stream.
      cancelled: whether the client is gone.
      alive: seconds between signs of life.

    Raises:
      Ended: the client connected anew, or the server lets go of the stream.
      whatever reading raises.
    """
    if ticket.trainer is None:
      take = self._peeks(ticket)
    else:
      take = self._takes(ticket, alive)
    for batch, meter in take:
      if cancelled():
        take.close()
        return
      if batch is None:
        yield None
        continue
      first, stop = batch.positions.searchsorted(ticket.part)
      if first == stop:
        continue
      rows = batch.rows[first:stop]
      meter.add(len(rows), rows.nbytes)
      with self._lock:
        self.rows_served += len(rows)
        self.bytes_served += rows.nbytes
      positions = batch.positions[first:stop] - ticket.part[0]
      sent = Sent(batch.step, positions, rows, meter)
      del batch, positions, rows  # the buffer may drop them meanwhile
      yield sent

  def _peeks(self, ticket: Ticket) -> Iterator[tuple[Batch, Meter]]:
    meter, step = Meter(), self.following(ticket.start)
    while not _is_over(ticket, step):
      yield self.ready.peek(step), meter
      step = self.following(step + 1)

  def _takes(
    self, ticket: Ticket, alive: float
  ) -> Iterator[tuple[Batch | None, Meter]]:
    name = ticket.trainer
    trainer = self.ready.attach(name, ticket.start, ticket.stop)
    while not _is_over(ticket, self.following(trainer.step)):
      try:
        batch = self.ready.take(trainer, alive)
      except Ended:
        raise
      except Exception:
        self.ready.leave(name)  # it ends with this error: nobody need wait
        raise
      try:
        yield batch, trainer.meter
      except GeneratorExit:  # cancelled: it may come back, or be dead
        trainer.connected = False
        raise
    self.ready.leave(name)


def _is_over(ticket: Ticket, step: int) -> bool:
  return ticket.stop is not None and step >= ticket.stop
