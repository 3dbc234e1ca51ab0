"""The planner's arithmetic, against closed forms and real files."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import gemma_scope, quickstart
from gemmascope_jax.data.stores import shards
from gemmascope_jax.experiment import settings
from gemmascope_jax.gemma.config import preset
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary
from gemmascope_jax.sae.train_step import init_state
from gemmascope_jax.training import utilisation
from launch.planner import accelerators, costs, paper

_MACHINE = costs.Machine(accelerators.find("h100"), utilisation=0.5)


def test_the_papers_figures():
  for check in paper.checks():
    assert check.agrees, check


def test_a_site_of_gemma_2_2b_by_hand():
  config = gemma_scope.config("gemma-2-2b", "res.12,16k")
  lm = costs.model(config)
  made = costs.harvest(config, lm, _MACHINE)
  rows, width = 4 * 10**9, 2304
  assert made.tokens == pytest.approx(rows * 1024 / 1023)
  # 13 layers: attention of 8 + 2 x 4 + 8 heads of 256, gated MLP of 9,216.
  weights = 13 * (width * 256 * (8 + 4 + 4 + 8) + 3 * width * 9216)
  scores = 13 * 2 * 8 * 256 * 1024  # q k and values, on half of 1,024
  assert made.flops == pytest.approx(made.tokens * (2 * weights + scores))
  seconds = made.flops / (67e12 * 0.5)
  assert made.device_hours == pytest.approx(seconds / 3600)
  assert made.site_bytes["res.12"] == pytest.approx(
    rows * (width * 4 + 8), rel=1e-5
  )
  assert made.index_bytes == pytest.approx(rows * 8 * 1025 / 1023, rel=1e-5)
  first, *_ = costs.training(config, lm, _MACHINE)
  assert first.steps == -(-rows // 4096)
  assert first.step_seconds == pytest.approx(
    10 * 4096 * width * 2**14 / (67e12 * 0.5)
  )
  assert first.batch_bytes == 4096 * width * 4
  parameters = 2 * width * 2**14 + 2 * 2**14 + width
  counters = 2 * 2**14
  assert first.state_bytes == pytest.approx(
    4 * (2 * parameters + counters),
    abs=64,  # b1 is 0: no first moment
  )
  assert first.sae_bytes == 4 * parameters


def test_devices_share_the_time_and_not_the_work():
  config = quickstart.get_config()
  lm = costs.model(config)
  one = costs.training(config, lm, _MACHINE)[0]
  eight = costs.training(config, lm, dataclasses.replace(_MACHINE, devices=8))[
    0
  ]
  assert eight.step_seconds == pytest.approx(one.step_seconds / 8)
  assert eight.device_hours == one.device_hours
  assert eight.batch_bytes == one.batch_bytes


def test_a_transcoder_reads_two_sites():
  config = gemma_scope.config("gemma-2-2b", "transcoder.3,16k")
  lm = costs.model(config)
  first = costs.training(config, lm, _MACHINE)[0]
  assert first.batch_bytes == 2 * 4096 * 2304 * 4
  assert len(costs.harvest(config, lm, _MACHINE).site_bytes) == 2


def test_step_seconds_are_those_of_the_formula_that_training_logs():
  config = quickstart.get_config()
  lm = costs.model(config)
  recipe = settings.recipes(config)[0]
  found = costs.training(config, lm, _MACHINE)[0]
  flops = utilisation.step_flops(recipe, 640, 640)
  assert found.flops == recipe.steps * flops


def test_a_live_run_stores_nothing():
  config = quickstart.get_config()
  stored = costs.harvest(config, costs.model(config), _MACHINE)
  config.data.source = "live"
  live = costs.harvest(config, costs.model(config), _MACHINE)
  assert live.bytes == 0
  assert live.flops / stored.flops == pytest.approx(458_752 / 196_608)


def test_store_bytes_are_those_of_real_files(tmp_path):
  sums = np.zeros((2, 24))
  for dtype in ("float32", "bfloat16"):
    arrays = [sums]
    for rows in (100, 100, 37):
      stored = shards.encode(np.ones((rows, 24), np.float32), dtype)
      arrays += [stored, shards.row_checks(stored), sums]
    size = 0
    for array in arrays:
      np.save(tmp_path / "array.npy", array)
      size += (tmp_path / "array.npy").stat().st_size
    assert costs.store_bytes(237, 24, dtype, 100) == size


def test_state_bytes_are_those_of_a_real_state():
  for family in ("jumprelu", "gated", "batch_topk"):
    recipe = Recipe(family=family, width=64, batch_size=32, steps=2)
    x = jax.numpy.ones((32, 8))
    state = init_state(
      recipe,
      jax.random.key(0),
      dictionary.Sample(x, x, x[0], x[0]),
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert costs._sizes(recipe, 8, 8)[0] == size


@pytest.mark.parametrize(
  ("values", "match"),
  [
    ({"devices": 0}, "--devices=0: expected more than 0"),
    ({"disk_gib_s": float("inf")}, "--disk_gib_s=inf: expected more than 0"),
    ({"tib_month_dollars": -1}, "--tib_month_dollars=-1: expected 0 or more"),
    ({"utilisation": 1.5}, "--utilisation=1.5: expected a share"),
    ({"disk_gib_s": -1}, "--disk_gib_s=-1"),
  ],
)
def test_machines_that_there_are_not(values, match):
  with pytest.raises(ValueError, match=match):
    dataclasses.replace(_MACHINE, **values)


def test_unknown_names_are_said():
  with pytest.raises(ValueError, match="--accelerator=b300: expected one of"):
    accelerators.find("b300")
  config = quickstart.get_config()
  config.lm.source = "/models/mine"
  with pytest.raises(ValueError, match="give --model, one of gemma-2-2b"):
    costs.model(config)
  assert costs.model(config, "gemma-2-9b") == preset("gemma-2-9b")
