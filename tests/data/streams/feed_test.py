import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gemmascope_jax import parallel
from gemmascope_jax.data.streams import feed
from tests.rows_stream import RowsStream


def feeding():
  return [t for t in threading.enumerate() if t.name == "Feed"]


@pytest.mark.parametrize(
  "axes", [None, {"data": 8}, {"data": 2, "model": 4}, {"model": 8}]
)
def test_batches_land_on_the_mesh(axes):
  mesh = axes and parallel.make_mesh(axes)
  stream = RowsStream(64)
  steps = []
  for step, batch in feed.Feed(stream, mesh).iterate(3, 9):
    steps.append(step)
    assert isinstance(batch, jax.Array) and batch.shape == (64, 8)
    np.testing.assert_array_equal(batch, stream.batch(step))
    if axes:
      axis = "data" if "data" in axes else None
      assert batch.sharding.spec == PartitionSpec(axis)
      rows = {shard.data.shape[0] for shard in batch.addressable_shards}
      assert rows == {64 // axes.get("data", 1)}
  assert steps == list(range(3, 9))
  assert not feeding()


def test_thread_ends_when_dropped_and_when_the_stream_fails():
  batches = feed.Feed(RowsStream(64)).iterate(0)
  next(batches)
  assert feeding()
  batches.close()
  assert not feeding()

  class Failing(RowsStream):
    def batch(self, step, part=slice(None)):
      if step == 2:
        raise ValueError("the disk is gone")
      return super().batch(step, part)

  with pytest.raises(ValueError, match="the disk is gone"):
    list(feed.Feed(Failing(64)).iterate(0, 5))
  assert not feeding()


def test_closing_does_not_wait_for_a_stream_that_hangs():
  hanging = threading.Event()

  class Hanging(RowsStream):
    def iterate(self, start=0, stop=None, *, part=slice(None)):
      yield start, self.batch(start, part)
      hanging.wait(60)

  batches = feed.Feed(Hanging(64)).iterate(0)
  next(batches)
  start = time.monotonic()
  batches.close()
  assert time.monotonic() - start < 10
  hanging.set()
  for thread in feeding():
    thread.join(10)
  assert not feeding()


def test_batch_size_that_the_mesh_does_not_divide():
  mesh = parallel.make_mesh({"data": 8})
  with pytest.raises(ValueError, match="batch_size 60: .* multiple .* 8"):
    feed.Feed(RowsStream(60), mesh)


def test_shares_add_up_and_name_the_limit():
  waited = {"disk": 0.6, feed.COPY: 0.2, feed.TRAINER: 0.2}
  shares = feed.limit(waited, trainer_waited=0.4)
  assert sum(shares.values()) == pytest.approx(1.0)
  assert shares == {"step": 0.6, "disk": 0.3, feed.COPY: 0.1}
  assert feed.limit({}, 0.0) == {"step": 1.0}


def test_a_slow_stream_is_the_limit():
  batches = feed.Feed(RowsStream(64, pause=0.02))
  list(batches.iterate(0, 10))
  waited = batches.meter.total()["waited"]
  assert max(waited, key=waited.get) == "memory"
  assert waited["memory"] > 0.5
