"""The simulation against closed forms."""

import dataclasses
import math

import pytest

from launch.planner import simulate
from launch.planner.simulate import Server, Service, Trainer

_MIB = 2**20
_SERVER = Server(100 * _MIB, 200 * _MIB, 64 * _MIB)
_FAST = Server(1e12, 1e12, 64 * _MIB)
_SERVICE = Service((Trainer(0.001),), (_SERVER,), 4000, _MIB)


def _with(**values):
  return dataclasses.replace(_SERVICE, **values)


@pytest.mark.parametrize(
  ("service", "seconds"),
  [
    # One server, one trainer: the slowest of disk, network and trainer.
    (_SERVICE, 40),
    (_with(servers=(Server(1000 * _MIB, 200 * _MIB, 64 * _MIB),)), 20),
    (_with(trainers=(Trainer(0.05),)), 200),
    # Four disks, all at a time; or one after the other.
    (_with(servers=(_SERVER,) * 4), 10),
    (_with(servers=(_SERVER,) * 4, spread=False), 40),
    # A slow disk holds up all others.
    (_with(servers=(_SERVER, Server(50 * _MIB, 200 * _MIB, 64 * _MIB))), 40),
    # Four trainers share a line.
    (_with(trainers=(Trainer(0.001),) * 4), 80),
    # All at the pace of the slow one.
    (_with(trainers=(Trainer(0.03), Trainer(0.001))), 120),
  ],
)
@pytest.mark.parametrize("chunk", [1, 8])
def test_what_limits_sets_the_time(service, seconds, chunk):
  found = simulate.run(service, chunk=chunk)
  assert found.seconds == pytest.approx(seconds, rel=0.02)
  assert found.read == pytest.approx(4000 * _MIB)  # once for all
  assert found.sent == pytest.approx(4000 * _MIB * len(service.trainers))


def test_shares_of_the_time_and_rates_over_it():
  found = simulate.run(_with(trainers=(Trainer(0.005),)))
  assert found.computing[0] == pytest.approx(0.5, rel=0.01)  # of 40 s
  assert found.down == (0,)
  assert found.disk_busy == pytest.approx(1, rel=0.01)
  assert found.network_busy == pytest.approx(0.5, rel=0.01)
  step = found.line[1][0] - found.line[0][0]
  assert sum(read for _, read, _ in found.line) * step == pytest.approx(
    found.read
  )
  assert all(
    read == pytest.approx(100 * _MIB, rel=0.1)
    for _, read, _ in found.line[5:-5]
  )


@pytest.mark.parametrize("patience", [0, 0.05])
def test_without_patience_a_slow_trainer_is_left_behind(patience):
  service = _with(
    trainers=(Trainer(0.001), Trainer(0.1)), steps=1000, patience=patience
  )
  found = simulate.run(service, chunk=1)
  assert found.finished[0] < 12  # the disk, and what is read for the other
  assert found.finished[1] == pytest.approx(100, rel=0.01)
  assert found.read > 1900 * _MIB  # once more, for it alone
  waits = simulate.run(dataclasses.replace(service, patience=30), chunk=1)
  assert waits.finished[0] == pytest.approx(94, rel=0.02)  # a buffer ahead
  assert waits.read == pytest.approx(1000 * _MIB)


def test_a_trainer_that_was_away_catches_up_from_the_disk():
  trainers = (
    Trainer(0.1),
    Trainer(0.1, 100, down_seconds=60, checkpoint_steps=1),
  )
  service = _with(trainers=trainers, servers=(_FAST,), steps=1000, patience=5)
  found = simulate.run(service, seed=3, chunk=1)
  assert found.preemptions[1] > 0
  # The other one waits for it no longer than the patience, twice each time: as
  # it goes silent, and as it comes back late.
  most = 100 + 2 * 5 * found.preemptions[1]
  assert 100 <= found.finished[0] <= most + 1
  assert found.read > 1000 * _MIB


def test_preemptions_cost_the_pause_and_what_was_lost():
  trainer = Trainer(0.1, 200, down_seconds=60, checkpoint_steps=100)
  service = _with(trainers=(trainer,), servers=(_FAST,), steps=40_000)
  found = simulate.run(service, chunk=10)
  assert found.preemptions[0] > 10
  assert found.seconds == pytest.approx(
    4000 + 60 * found.preemptions[0] + 0.1 * found.lost_steps[0], rel=1e-3
  )
  assert found.down[0] * found.seconds == pytest.approx(
    60 * found.preemptions[0]
  )
  # On average half of what lies between checkpoints.
  lost = found.lost_steps[0] / found.preemptions[0]
  assert 30 < lost < 70
  assert simulate.run(service, chunk=10) == found
  assert simulate.run(service, seed=1, chunk=10) != found


def test_preempted_when_asked():
  trainer = Trainer(
    0.1, down_seconds=7, checkpoint_steps=20, preempted_at=(5.02, 9.0)
  )
  service = _with(trainers=(trainer,), servers=(_FAST,), steps=100)
  found = simulate.run(service, chunk=1)
  # At step 50.2 of 100, back to 40; the second one finds it away.
  assert found.preemptions == (1,)
  assert found.lost_steps[0] == pytest.approx(10.2, abs=0.01)
  assert found.seconds == pytest.approx(10 + 7 + 1.02, abs=0.01)


def test_a_million_steps_take_seconds():
  service = _with(trainers=(Trainer(0.05),) * 5, steps=10**6)
  found = simulate.run(service)
  assert found.seconds == pytest.approx(50_000, rel=0.01)


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: _with(trainers=()), "without trainers"),
    (lambda: _with(servers=()), "without servers"),
    (lambda: _with(steps=0), "steps is 0: expected more than 0"),
    (lambda: _with(patience=-1), "patience is -1: expected at least 0"),
    (lambda: Trainer(0.0), "step_seconds is 0.0: expected more than 0"),
    (lambda: Trainer(1.0, down_seconds=math.inf), "down_seconds is inf"),
    (lambda: Server(0, 1), "disk_rate is 0: expected more than 0"),
  ],
)
def test_errors(make, match):
  with pytest.raises(ValueError, match=match):
    make()
