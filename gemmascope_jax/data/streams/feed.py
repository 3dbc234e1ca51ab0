"""A stream's batches on the devices, one ahead of the trainer.

Double-buffered: while a step runs on one batch, the next is copied, and the
stream gathers the one after that. A process of several reads and copies only
the rows that its devices hold.

Letters: B rows in a batch, D width of the site.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from gemmascope_jax import parallel
from gemmascope_jax.data.streams.stream import WHOLE, ActivationStream
from gemmascope_jax.throughput import Meter

COPY = "host-to-device copy"
TRAINER = "trainer"
_POLL_SECONDS = 0.1
_LAST_SECONDS = 2.0


class Feed:
  """Batches as JAX arrays, rows split over the mesh's "data" axis.

  Memory on the devices: three batches, the one in use, one ready and one
  being copied.

  Attributes:
    meter: what the copying thread waited for: the stream's `waits_for`, the
      trainer (that is the good case), and, under "host-to-device copy", how
      long copies took.
  """

  def __init__(self, stream: ActivationStream, mesh: Mesh | None = None):
    """Describes the feed; reads nothing.

    Args:
      stream: batches float32 [B, D].
      mesh: devices; None: the default one.

    Raises:
      ValueError: the mesh's data axis does not divide B.
    """
    self._stream, self._sharding, self._part = stream, None, WHOLE
    self.meter = Meter()
    if mesh is not None:
      size = mesh.shape.get(parallel.DATA, 1)
      if stream.batch_size % size:
        raise ValueError(
          f"batch_size {stream.batch_size}: expected a multiple of the mesh's"
          f" data axis, {size}"
        )
      axis = parallel.DATA if parallel.DATA in mesh.shape else None
      self._sharding = NamedSharding(mesh, PartitionSpec(axis))
      self._part = rows_here(self._sharding, stream.batch_size)

  def put(self, batch: np.ndarray) -> jax.Array:
    """One batch, or this process's rows of it, onto the devices."""
    if self._sharding is None:
      return jnp.asarray(batch)
    if self._sharding.is_fully_addressable:
      return jax.device_put(batch, self._sharding)
    shape = (self._stream.batch_size, *batch.shape[1:])
    first = self._part.start or 0

    def rows(index):
      start, stop, _ = index[0].indices(shape[0])
      return batch[start - first : stop - first]

    return jax.make_array_from_callback(shape, self._sharding, rows)

  def iterate(
    self, start: int, stop: int | None = None
  ) -> Iterator[tuple[int, jax.Array]]:
    """(step, float32 [B, D]) from `start` up to `stop`, in order.

    The thread ends when the iterator is closed, dropped or fails, or soon
    after: nobody waits for it longer than 2 seconds.
    """
    ready: queue.Queue = queue.Queue(maxsize=1)
    closed = threading.Event()

    def hand_over(item) -> bool:
      with self.meter.waiting(TRAINER):
        while not closed.is_set():
          try:
            ready.put(item, timeout=_POLL_SECONDS)
            return True
          except queue.Full:
            continue
      return False

    def work() -> None:
      source = self._stream.iterate(start, stop, part=self._part)
      try:
        while True:
          with self.meter.waiting(self._stream.waits_for):
            item = next(source, None)
          if item is None:
            hand_over(None)
            return
          step, batch = item
          with self.meter.waiting(COPY):
            x = jax.block_until_ready(self.put(batch))
          self.meter.add(len(batch), batch.nbytes)
          del item, batch  # so that the stream can use its memory again
          if not hand_over((step, x)):
            return
          del x
      except BaseException as error:  # noqa: BLE001 - raised by the consumer
        hand_over(error)
      finally:
        close = getattr(source, "close", None)
        if close:
          close()

    thread = threading.Thread(target=work, name="Feed", daemon=True)
    thread.start()
    try:
      while (item := ready.get()) is not None:
        if isinstance(item, BaseException):
          raise item
        yield item
        del item
    finally:
      closed.set()
      # A stream that waits for servers may not hear of it; the thread is a
      # daemon, and touches nothing once it is let go.
      thread.join(_LAST_SECONDS)


def rows_here(sharding: Sharding, batch_size: int) -> slice:
  """The rows of a batch that this process's devices hold, as one slice."""
  held = sharding.addressable_devices_indices_map((batch_size,)).values()
  bounds = [index[0].indices(batch_size)[:2] for index in held]
  return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))


def limit(waited: dict[str, float], trainer_waited: float) -> dict[str, float]:
  """Where a trainer's time went, as shares that add up to 1.

  Args:
    waited: the copying thread's shares, `meter.read()["waited"]`.
    trainer_waited: share of its time that the trainer had no batch.

  Returns:
    {"step": ..., "host-to-device copy": ..., what the stream waits for: ...};
    the largest is the limit. A trainer without a batch waits for what the
    copying thread did meanwhile.
  """
  behind = {why: s for why, s in waited.items() if why != TRAINER}
  total = sum(behind.values()) or 1.0
  shares = {
    why: round(trainer_waited * share / total, 4)
    for why, share in behind.items()
  }
  return {"step": round(1.0 - trainer_waited, 4), **shares}
