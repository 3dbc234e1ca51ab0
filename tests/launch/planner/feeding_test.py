"""Rates and prices by hand."""

import dataclasses

import pytest

from configs import gemma_scope
from launch.planner import accelerators, costs, feeding

_MACHINE = costs.Machine(
  accelerators.find("tpu_v3"), 8, 0.5, disk_gib_s=0.25, network_gib_s=2
)


@pytest.fixture(scope="module")
def config():
  config = gemma_scope.config("gemma-2-9b", "res.20,131k")
  config.recipe.matmul_precision = "default"
  return config


@pytest.fixture(scope="module")
def members(config):
  return costs.training(config, costs.model(config), _MACHINE)


def test_members_of_a_trainer_take_turns(members):
  found = feeding.feeding(members, _MACHINE)
  step = 3 * 10 * 4096 * 3584 * 2**17 / (8 * 123e12 * 0.5)
  assert found.step_seconds == pytest.approx(step)
  assert found.batch_bytes == 4096 * 3584 * 4
  assert found.needed == pytest.approx(4096 * 3584 * 4 / step)


def test_servers_read_once_and_send_to_each(members):
  one = members[:1]
  rate = 4096 * 3584 * 4 / one[0].step_seconds / 2**30  # 1.4 GiB/s
  found = feeding.feeding(one, _MACHINE, trainers=4)
  assert found.read / 2**30 == pytest.approx(rate)
  assert found.sent / 2**30 == pytest.approx(4 * rate)
  assert found.servers == 6  # disks: 1.4 / 0.25; lines: 5.6 / 2
  assert feeding.feeding(one, _MACHINE, trainers=10).servers == 7  # lines


def test_servers_that_come_one_after_the_other_do_not_add_up(members):
  found = feeding.feeding(members[:1], _MACHINE, spread=False)
  assert (found.servers, found.enough) == (1, False)
  fast = dataclasses.replace(_MACHINE, disk_gib_s=1.5)
  found = feeding.feeding(members[:1], fast, spread=False)
  assert (found.servers, found.enough) == (1, True)


def test_break_even_is_where_both_cost_the_same(config):
  made = costs.harvest(config, costs.model(config), _MACHINE)
  days = feeding.break_even_days(made, _MACHINE)
  again = feeding.harvesting_dollars(made, _MACHINE)
  assert feeding.storing_dollars(made, _MACHINE, days) == pytest.approx(again)
  assert again == pytest.approx(made.device_hours * 2.0)
  tebibytes = made.bytes / 2**40
  assert feeding.storing_dollars(made, _MACHINE, 30) == 10 * tebibytes
  free = dataclasses.replace(_MACHINE, tib_month_dollars=0.0)
  assert feeding.break_even_days(made, free) == float("inf")


def test_no_trainers(members):
  with pytest.raises(ValueError, match="--trainers=0: expected at least 1"):
    feeding.feeding(members, _MACHINE, trainers=0)
