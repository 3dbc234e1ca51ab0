"""The buffer, over a source that counts what is read."""

import contextlib
import threading
import time

import numpy as np
import pytest

from gemmascope_jax.data.serving import ready as ready_module
from gemmascope_jax.data.serving.ready import (
  Batch,
  Ended,
  ReadyBatches,
  Replaced,
)

ROWS, WIDTH = 10, 4
BYTES = ROWS * WIDTH * 4


class Counted:
  """Batches of known content; records which were read."""

  batch_bytes = BYTES

  def __init__(self, every=1, seconds=0.0):
    self.read_steps, self.every, self.seconds = [], every, seconds

  def following(self, step):
    return -(-step // self.every) * self.every

  def read(self, step):
    self.read_steps.append(step)
    time.sleep(self.seconds)
    rows = np.full((ROWS, WIDTH), step, np.float32)
    return Batch(step, np.arange(ROWS), rows)


@pytest.fixture
def open_buffer():
  opened = []

  def make(source, batches, patience):
    ready = ReadyBatches(source, lambda: batches * BYTES, patience)
    opened.append(ready)
    return ready

  yield make
  for ready in opened:
    ready.close()


def run(ready, name, start, stop, seconds=0.0, gate=None):
  """A trainer that takes batches start..stop-1, so long a batch."""
  trainer, taken = ready.attach(name, start), []
  if gate:
    gate.wait(10)
  while trainer.step < stop:
    batch = ready.take(trainer, 10.0)
    assert batch is not None, "waited for ten seconds"
    assert (batch.rows == batch.step).all()
    taken.append(batch.step)
    time.sleep(seconds)
  return taken


def together(*calls):
  """Calls in threads of their own; their results."""
  results = [None] * len(calls)

  def call(index, function, *arguments):
    results[index] = function(*arguments)

  threads = [
    threading.Thread(target=call, args=(index, *arguments))
    for index, arguments in enumerate(calls)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  return results


def test_every_batch_in_order_and_read_ahead(open_buffer):
  source = Counted(every=3)
  ready = open_buffer(source, 8, 30.0)
  assert run(ready, "a", 4, 40) == list(range(6, 40, 3))
  time.sleep(0.5)
  assert 42 in source.read_steps  # nobody has asked for it
  assert len(source.read_steps) == len(set(source.read_steps))
  assert ready.filled() <= 8 * BYTES


def test_nothing_is_read_beyond_the_last_step(open_buffer):
  source = Counted()
  ready = open_buffer(source, 20, 30.0)
  trainer = ready.attach("a", 0, 5)
  for _ in range(5):
    ready.take(trainer, 5)
  time.sleep(0.5)
  assert max(source.read_steps) == 4


def test_two_who_ask_for_one_step_cause_one_reading(open_buffer):
  source = Counted(seconds=0.02)
  ready = open_buffer(source, 4, 30.0)
  taken = together(*[(run, ready, name, 0, 30) for name in "abcd"])
  assert taken == [list(range(30))] * 4
  assert len(source.read_steps) == len(set(source.read_steps))


def test_the_fast_wait_for_the_slow(open_buffer):
  source = Counted()
  ready = open_buffer(source, 4, 30.0)
  both = threading.Barrier(2)
  taken = together(
    (run, ready, "fast", 0, 40, 0.0, both),
    (run, ready, "slow", 0, 40, 0.01, both),
  )
  assert taken == [list(range(40))] * 2
  assert len(source.read_steps) == len(set(source.read_steps))
  fast = next(t for t in ready.trainers() if t.name == "fast")
  assert fast.meter.total()["waited"]["other trainers"] > 0.2


def test_nobody_waits_longer_than_patience_for_one_that_stopped(open_buffer):
  source = Counted()
  ready = open_buffer(source, 4, 0.5)
  stuck = ready.attach("stuck", 0)
  assert ready.take(stuck, 5).step == 0
  start = time.monotonic()
  assert run(ready, "fast", 0, 200) == list(range(200))
  assert 0.3 < time.monotonic() - start < 3
  # It comes back and gets what it missed, read anew.
  assert [ready.take(stuck, 5).step for _ in range(50)] == list(range(1, 51))
  assert ready.filled() <= (4 + 4) * BYTES


def test_who_leaves_is_not_waited_for(open_buffer):
  ready = open_buffer(Counted(), 4, 30.0)
  gone = ready.attach("gone", 0)
  ready.leave("gone")
  start = time.monotonic()
  run(ready, "fast", 0, 100)
  assert time.monotonic() - start < 3
  with pytest.raises(Ended):
    ready.take(gone, 1)


def test_without_patience_nobody_waits(open_buffer):
  source = Counted()
  ready = open_buffer(source, 4, 0.0)
  ready.attach("stuck", 0)
  start = time.monotonic()
  run(ready, "fast", 0, 100)
  assert time.monotonic() - start < 1


def test_one_far_behind_stops_others_for_patience_at_most(open_buffer):
  source = Counted(seconds=0.002)
  ready = open_buffer(source, 4, 0.5)
  ahead = ready.attach("ahead", 100_000)
  for _ in range(10):
    ready.take(ahead, 5)

  def take_for_ever():
    with contextlib.suppress(Ended):
      run(ready, "new", 0, 10**9)

  taken = threading.Thread(target=take_for_ever)
  taken.start()
  time.sleep(0.1)
  start, took = time.monotonic(), 0
  while time.monotonic() - start < 1.5:
    took += ready.take(ahead, 0.1) is not None
  assert took > 30
  ready.close()
  taken.join(10)


def test_a_leader_never_waits_for_itself(open_buffer):
  # Full of what a faster one, now gone, had read ahead.
  ready = open_buffer(Counted(), 4, 0.3)
  fast = ready.attach("fast", 10)
  for _ in range(5):
    ready.take(fast, 5)
  time.sleep(0.4)
  assert run(ready, "next", 8, 40) == list(range(8, 40))


def test_four_speeds_and_a_restart_cost_little_more_than_one(open_buffer):
  """The brief's measure: rows read < 1.2 of what one trainer needs."""
  source = Counted(seconds=0.001)
  ready = open_buffer(source, 8, 5.0)

  def killed(stop_at, back_at, pause):
    first = run(ready, "d", 0, stop_at)
    time.sleep(pause)  # killed, without a good-bye
    return first, run(ready, "d", back_at, 200)

  results = together(
    (run, ready, "a", 0, 200),
    (run, ready, "b", 0, 200, 0.001),
    (run, ready, "c", 0, 200, 0.003),
    (killed, 100, 90, 0.3),
  )
  assert results[:3] == [list(range(200))] * 3
  assert results[3][1] == list(range(90, 200))
  assert len(source.read_steps) < 1.2 * 200


def test_a_newer_connection_ends_the_older(open_buffer):
  ready = open_buffer(Counted(), 4, 5.0)
  old = ready.attach("a", 0)
  new = ready.attach("a", 3)
  with pytest.raises(Replaced, match="connected as a: give each"):
    ready.take(old, 1)
  assert ready.take(new, 5).step == 3


def test_a_reading_that_fails_reaches_who_asked_and_no_other(open_buffer):
  class Damaged(Counted):
    def read(self, step):
      if step == 2:
        raise OSError("step 2 is damaged")
      return super().read(step)

  ready = open_buffer(Damaged(), 4, 0.2)
  for name in "ab":
    trainer = ready.attach(name, 0)
    ready.take(trainer, 5), ready.take(trainer, 5)
    with pytest.raises(OSError, match="step 2"):
      ready.take(trainer, 5)
  assert run(ready, "c", 3, 20) == list(range(3, 20))


def test_peeking_holds_nobody(open_buffer):
  source = Counted()
  ready = open_buffer(source, 4, 30.0)
  assert ready.peek(5).step == 5
  start = time.monotonic()
  run(ready, "a", 0, 50)
  assert time.monotonic() - start < 2
  assert [t.name for t in ready.trainers()] == ["a"]


def test_take_gives_up_in_time(open_buffer):
  ready = open_buffer(Counted(seconds=1.0), 2, 30.0)
  a, b = ready.attach("a", 0), ready.attach("b", 0)
  thread = threading.Thread(target=ready.take, args=(a, 5))
  thread.start()
  time.sleep(0.1)
  start = time.monotonic()
  assert ready.take(b, 0.2) is None
  assert time.monotonic() - start < 0.6
  thread.join()


def test_the_dead_are_forgotten_and_the_living_are_not(
  open_buffer, monkeypatch
):
  monkeypatch.setattr(ready_module, "_LIVE", 0.05)
  ready = open_buffer(Counted(), 4, 0.05)
  dead, quiet = ready.attach("dead", 0), ready.attach("quiet", 0)
  dead.connected = False
  ready.attach("soon", 0).connected = False
  assert len(ready.trainers()) == 3  # it may come back yet
  time.sleep(0.1)
  ready.attach("new", 0)
  assert {t.name for t in ready.trainers()} == {"quiet", "new"}
  assert quiet.connected


def test_a_buffer_holds_so_many_batches_however_small(open_buffer, monkeypatch):
  monkeypatch.setattr(ready_module, "_MOST", 5)
  ready = open_buffer(Counted(), 1000, 5.0)
  trainer = ready.attach("a", 0)
  for _ in range(40):
    ready.take(trainer, 5)
    assert len(ready._ready) <= 5


def test_readers_of_single_batches_share_a_reading(open_buffer):
  source = Counted(seconds=0.05)
  ready = open_buffer(source, 8, 5.0)
  steps = together(*[(ready.peek, 3) for _ in range(6)])
  assert {batch.step for batch in steps} == {3}
  assert source.read_steps.count(3) == 1
