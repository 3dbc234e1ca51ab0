"""Lambdas read off planted curves, and off real short runs."""

import dataclasses

import numpy as np
import pytest

from gemmascope_jax import metrics, training
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.training import calibrate
from tests import rows_stream
from tests.training import run_test


def _curve(coefficient):
  """L0 = 2 lambda^-0.8, the kind of line that is found."""
  return 2 * coefficient**-0.8


def _points(coefficients, change=1.0):
  return [
    calibrate.Point(c, _curve(c), change * _curve(c)) for c in coefficients
  ]


def test_a_power_law_is_read_exactly():
  points = _points([1e-4, 3e-3, 1e-3])
  for wanted in (300.0, 1000.0):
    found = calibrate.read(points, wanted)
    assert found.sparsity_coefficient == pytest.approx(
      (2 / wanted) ** 1.25, rel=1e-9
    )
    assert found.low == pytest.approx(found.high) and not found.extrapolated


@pytest.mark.parametrize("wanted", [100.0, 1e4])
def test_beyond_the_points_it_is_said(wanted):
  found = calibrate.read(_points([1e-4, 1e-3]), wanted)
  assert found.extrapolated
  assert found.reached == pytest.approx((_curve(1e-3), _curve(1e-4)))
  assert found.sparsity_coefficient == pytest.approx((2 / wanted) ** 1.25)


@pytest.mark.parametrize(("wanted", "bound"), [(1.0, 1e-2), (1e6, 1e-5)])
def test_no_lambda_is_far_beyond_the_points(wanted, bound):
  found = calibrate.read(_points([1e-4, 1e-3], change=1.1), wanted)
  assert found.extrapolated
  assert found[1:4] == pytest.approx((bound, bound, bound))


def test_what_still_changes_is_uncertain():
  found = calibrate.read(_points([1e-4, 1e-3], change=1.1), 900.0)
  # An L0 that is off by a tenth is a lambda off by 1.1^(1 / 0.8).
  assert found.high / found.sparsity_coefficient == pytest.approx(1.1**1.25)
  assert found.sparsity_coefficient / found.low == pytest.approx(1.1**1.25)


def test_noise_does_not_turn_the_line_round():
  points = [
    calibrate.Point(c, l0, l0)
    for c, l0 in ((1e-4, 100.0), (2e-4, 40.0), (4e-4, 50.0), (8e-4, 20.0))
  ]
  found = [calibrate.read(points, l0) for l0 in (90, 60, 46, 42, 25)]
  values = [each.sparsity_coefficient for each in found]
  assert values == sorted(values)
  # In the level part between the two that are the wrong way round.
  assert found[2].low <= 2e-4 * 1.05 and found[3].high >= 4e-4 / 1.05


def test_the_falling_line_is_the_nearest_one():
  y = np.random.default_rng(0).normal(size=9) - np.arange(9) / 3
  fit = calibrate._falling(y)
  assert (np.diff(fit) <= 0).all() and fit.sum() == pytest.approx(y.sum())
  rng = np.random.default_rng(1)
  for _ in range(200):  # none that never rises is nearer
    other = np.sort(fit + rng.normal(size=9) * 0.1)[::-1]
    assert ((y - fit) ** 2).sum() <= ((y - other) ** 2).sum() + 1e-12


def test_warm_ups_shrink_with_the_run():
  recipe = Recipe()
  short = calibrate.shortened(recipe, recipe.steps // 10)
  assert short.sparsity_warmup_steps == 1_000
  assert short.learning_rate_warmup_steps == 100
  assert calibrate.shortened(recipe, 2 * recipe.steps) == recipe


@pytest.mark.parametrize(
  ("change", "l0", "says"),
  [
    ({"sparsity_loss": "l0_target", "target_l0": 5.0}, 5, "its L0 is set"),
    ({"sparsity_coefficient": 0.0}, 5, "give one near which"),
    ({}, 24, "between 0 and the width, 24"),
  ],
)
def test_what_makes_no_sense_is_refused(tmp_path, change, l0, says):
  recipe = dataclasses.replace(run_test.RECIPE, **change)
  stream = rows_stream.RowsStream(16)
  with pytest.raises(ValueError, match=says):
    calibrate.calibrate(stream, recipe, [l0], tmp_path, steps=5)


def test_the_lambdas_found_give_the_l0s(tmp_path):
  recipe = dataclasses.replace(run_test.RECIPE, steps=120)
  stream = rows_stream.RowsStream(16)
  wanted = [2.0, 4.0]
  found = calibrate.calibrate(
    stream, recipe, wanted, tmp_path / "short", steps=120, progress=False
  )
  chosen = [
    dataclasses.replace(recipe, sparsity_coefficient=each.sparsity_coefficient)
    for each in found
  ]
  training.train(stream, chosen, tmp_path / "long", schedule=run_test.QUIET)
  lines = metrics.read_jsonl(tmp_path / "long" / training.METRICS)
  for each, member in zip(
    found, training.members(tmp_path / "long", chosen), strict=True
  ):
    assert not each.extrapolated
    l0 = [x["l0_mean"] for x in lines if x["name"] == member.name][-6:]
    assert np.mean(l0) == pytest.approx(each.l0, rel=0.15)
  # Asked again, it trains nothing.
  before = (tmp_path / "short" / training.METRICS).stat().st_mtime_ns
  again = calibrate.calibrate(
    stream, recipe, wanted, tmp_path / "short", steps=120, progress=False
  )
  assert again == found
  assert (tmp_path / "short" / training.METRICS).stat().st_mtime_ns == before
