"""Plans and predictions of real configs; the simulation has tests of its own."""

import dataclasses

import pytest

from configs import gemma_scope, quickstart
from launch.planner import (
  accelerators,
  costs,
  page,
  plan,
  prediction,
  simulate,
  tables,
)

_MACHINE = costs.Machine(accelerators.find("tpu_v3"), 8)


def _config(tokens=80_000_000):
  config = gemma_scope.config("gemma-2-2b", "res.12,65k")
  config.train.tokens = tokens
  config.train.shuffle = "global"
  config.train.sparsity_coefficients = (6e-4,)
  config.recipe.matmul_precision = "default"
  return config


@pytest.fixture(scope="module")
def made():
  return plan.make(_config(), _MACHINE, trainers=2)


def test_runs_that_share_activations_share_a_harvest():
  config = quickstart.get_config()
  config.harvest.sites = ("res.5", "mlp.5")
  config.runs = (
    {"name": "res", "train.site": "res.5"},
    {"name": "mlp", "train.site": "mlp.5"},
    {"name": "alive", "data.source": "live"},
  )
  made = plan.make(config, _MACHINE)
  assert [len(each.site_bytes) for each in made.harvests] == [2, 0]
  assert [run.name for run in made.runs] == ["res", "mlp", "alive"]
  assert len(made.members) == 12
  parts = (*made.harvests, *made.members)
  assert made.device_hours == sum(each.device_hours for each in parts)


def test_another_store_costs_nothing_to_make():
  config = quickstart.get_config()
  config.data.source = "grpc://somewhere:8815"
  assert plan.make(config, _MACHINE).harvests == ()


def test_enough_servers_and_no_chance_leave_nobody_waiting(made):
  scenario = prediction.Scenario(trainers=5, services=3)
  assert scenario.shares == (2, 2, 1)
  found = prediction.predict(made.runs[0], _MACHINE, scenario)
  assert found.servers == made.runs[0].feeding.servers == 14
  assert found.seconds == pytest.approx(found.undisturbed, rel=0.02)
  assert found.share("computing") > 0.98
  assert found.results[0] is found.results[1]  # alike
  # A disk limits both trainers of a site: with half of the servers, 1 / 2.
  rate = 7 * 0.2 * 2**30 / made.runs[0].feeding.needed
  assert found.by_servers[7] == pytest.approx(rate, rel=0.05)


def test_what_is_drawn_differs_between_services_and_not_between_calls(made):
  scenario = prediction.Scenario(
    trainers=2, services=2, preemption_hours=0.05, slower=0.2, seed=3
  )
  found = prediction.predict(made.runs[0], _MACHINE, scenario)
  assert found == prediction.predict(made.runs[0], _MACHINE, scenario)
  assert found.results[0] != found.results[1]
  assert found.share("down") > 0
  assert found.seconds > found.undisturbed


def test_trainers_come_apart_where_the_disk_is_just_fast_enough(made):
  """Read for each alone, until patience covers how long one is away."""
  scenario = prediction.Scenario(
    trainers=2, services=1, preemption_hours=0.1, down_minutes=1, seed=2
  )
  found = {
    patience: prediction.predict(
      made.runs[0], _MACHINE, dataclasses.replace(scenario, patience=patience)
    )
    for patience in (30, 300)
  }
  assert min(sum(each.results[0].preemptions) for each in found.values()) > 0
  assert found[30].results[0].read > 1.2 * found[300].results[0].read
  assert found[30].results[0].seconds > 1.08 * found[300].results[0].seconds


def test_checkpoints_matter_without_notice(made):
  run = made.runs[0]
  make = lambda **values: prediction.service(
    run, _MACHINE, prediction.Scenario(**values), 0, 1
  )
  assert make().trainers[0].checkpoint_steps == 1
  assert make(notice=False).trainers[0].checkpoint_steps == 5000  # 63 s
  run.config.train.unlock()
  run.config.train.checkpoint_minutes = 0.5
  steps = make(notice=False).trainers[0].checkpoint_steps
  assert steps == int(30 / run.feeding.step_seconds)
  run.config.train.checkpoint_minutes = 10.0
  assert isinstance(make(), simulate.Service)


def test_the_page_has_every_number_of_the_terminal(made, tmp_path):
  scenario = prediction.Scenario(trainers=2, services=1)
  found = prediction.predict(made.runs[0], _MACHINE, scenario)
  shown = tables.tables(made, found)
  path = tmp_path / "new" / "plan.html"
  assert page.write(str(path), made, found) == [path, path.with_suffix(".png")]
  html = path.read_text()
  for table in shown:
    assert page.escape(table.title) in html
    for _, *cells in table.rows:
      for cell in cells:
        assert page.escape(cell) in html
  assert html.count("<svg") == 1 and "<script" not in html
  assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
  with pytest.raises(ValueError, match="ends with .html"):
    page.write("plan.pdf", made)


@pytest.mark.parametrize(
  ("number", "shown"),
  [
    (999, "999 bytes"),
    (1023.9, "1 KiB"),
    (1536, "1.5 KiB"),
    (104.4 * 2**40, "104 TiB"),
    (18.38 * 2**50, "18.4 PiB"),
    (5000 * 2**50, "5,000 PiB"),
  ],
)
def test_sizes_are_short(number, shown):
  assert tables.size(number) == shown


def test_durations_and_counts_are_short():
  assert tables.duration(90) == "90 s"
  assert tables.duration(7200) == "2 hours"
  assert tables.duration(86_400 * 3) == "3 days"
  assert tables.count(458_752) == "4.59e+05"
  assert tables.count(99_999) == "99,999"


def test_what_does_not_fit_or_suffice_is_said():
  config = gemma_scope.config("gemma-2-9b", "res.20,1m")
  made = plan.make(config, costs.Machine(accelerators.find("tpu_v5e")))
  text = "\n".join(map(tables.text, tables.tables(made)))
  assert "TOO LITTLE, take more --devices" in text
  fast = dataclasses.replace(_MACHINE, devices=64)
  config.recipe.matmul_precision = "default"
  text = "\n".join(map(tables.text, tables.tables(plan.make(config, fast))))
  assert "none do" in text and "--config.train.shuffle=global" in text


@pytest.mark.parametrize(
  ("values", "match"),
  [
    ({"trainers": 2, "services": 3}, "--trainers=2 --services=3: expected"),
    ({"services": 0}, "--services=0"),
    ({"slower": -0.1}, "--slower=-0.1: expected at least 0"),
    ({"buffer_gib": 0}, "--buffer_gib=0: expected more than 0"),
  ],
)
def test_scenarios_that_there_are_not(values, match):
  with pytest.raises(ValueError, match=match):
    prediction.Scenario(**values)
