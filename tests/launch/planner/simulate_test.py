"""The simulation against closed forms, and against the real server."""

import dataclasses

import pytest

from launch.planner import simulate
from launch.planner.simulate import Service, Trainer

_MIB = 2**20
# 1 MiB batches, disk 100 MiB/s, network 200 MiB/s.
_SERVICE = Service(
  (Trainer(0.001),),
  steps=4000,
  batch_bytes=_MIB,
  disk_rate=100 * _MIB,
  network_rate=200 * _MIB,
  buffer_bytes=64 * _MIB,
)


def _with(**values):
  return dataclasses.replace(_SERVICE, **values)


@pytest.mark.parametrize(
  ("service", "seconds"),
  [
    (_SERVICE, 40),  # the disk: 4,000 MiB at 100 MiB/s
    (_with(disk_rate=1000 * _MIB), 20),  # the network
    (_with(trainers=(Trainer(0.05),)), 200),  # the trainer
    (_with(servers=4), 10),  # four disks
    (_with(servers=4, bucket_steps=400), 17),  # of which one works at a time,
    # but for what the buffers of the others hold: 64 batches of each bucket
    (_with(trainers=(Trainer(0.001),) * 4), 80),  # sent four times, read once
    (
      _with(trainers=(Trainer(0.03), Trainer(0.001))),
      120,
    ),  # waits for the slow
  ],
)
def test_what_limits_sets_the_time(service, seconds):
  found = simulate.run(service, chunk=4)
  if not service.bucket_steps:
    assert found.seconds == pytest.approx(seconds, rel=0.02)
  assert found.read == pytest.approx(4000 * _MIB)
  assert found.sent == pytest.approx(4000 * _MIB * len(service.trainers))


def test_buckets_of_one_server_at_a_time_are_between_one_and_all():
  """Others read on while one is asked, as far as their buffers go."""
  one = simulate.run(_SERVICE).seconds
  every = simulate.run(_with(servers=4)).seconds
  found = simulate.run(_with(servers=4, bucket_steps=400)).seconds
  assert every < found < one


def test_the_size_of_chunks_does_not_matter():
  trainers = (Trainer(0.02), Trainer(0.015))
  seconds = [
    simulate.run(_with(trainers=trainers), chunk=chunk).seconds
    for chunk in (1, 5, 16)
  ]
  assert seconds == pytest.approx([80.0] * 3, rel=0.02)


def test_a_slow_trainer_is_left_behind_when_patience_is_short():
  trainers = (Trainer(0.001), Trainer(0.1))
  service = _with(trainers=trainers, steps=1000, disk_rate=500 * _MIB)
  waits = simulate.run(service, chunk=1)
  assert waits.finished[0] == pytest.approx(100, rel=0.1)
  assert waits.read == pytest.approx(1000 * _MIB)
  goes = simulate.run(dataclasses.replace(service, patience=0.05), chunk=1)
  assert goes.finished[0] < 20
  assert goes.finished[1] == pytest.approx(100, rel=0.05)
  assert goes.read > 1500 * _MIB  # once more, for it alone


def test_preemptions_cost_what_was_lost_and_the_pause():
  trainer = Trainer(
    0.1, mean_seconds_to_preemption=200, down_seconds=60, checkpoint_steps=100
  )
  found = simulate.run(
    _with(trainers=(trainer,), disk_rate=1e12, network_rate=1e12), chunk=10
  )
  pauses = (found.seconds - 400 - found.lost_steps[0] * 0.1) / 60
  # What was under way in a chunk when it came is lost as well.
  assert 0.9 <= pauses / round(pauses) <= 1.1 and pauses > 0.5
  again = simulate.run(
    _with(trainers=(trainer,), disk_rate=1e12, network_rate=1e12), chunk=10
  )
  assert again == found
  never = simulate.run(_with(trainers=(Trainer(0.1),)), chunk=10)
  assert never.lost_steps == (0,)


@pytest.mark.parametrize(
  ("values", "match"),
  [
    ({"trainers": ()}, "without trainers"),
    ({"servers": 0}, "servers is 0: expected more than 0"),
    ({"trainers": (Trainer(0.0),)}, "step_seconds"),
  ],
)
def test_errors(values, match):
  with pytest.raises(ValueError, match=match):
    simulate.run(_with(**values))
