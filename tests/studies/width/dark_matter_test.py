"""Laws that are planted are found, with intervals that cover."""

import numpy as np
import pytest

from gemmascope_jax.studies.activity import Sample
from gemmascope_jax.studies.width import dark_matter
from tests.studies.activity import rows as made

WIDTHS = [2**n for n in range(10, 17)]


def _law(a, b, c):
  return a + b * np.array(WIDTHS, float) ** -c


def test_a_law_is_found():
  fvu = _law(0.05, 3.0, 0.4)
  found = dark_matter.fit(WIDTHS, fvu, np.diag((1e-4 * fvu) ** 2))
  assert found["a"]["value"] == pytest.approx(0.05, rel=0.02)
  assert found["b"]["value"] == pytest.approx(3.0, rel=0.05)
  assert found["c"]["value"] == pytest.approx(0.4, rel=0.02)
  np.testing.assert_allclose(found["fitted"], fvu, rtol=1e-3)
  for name in "abc":
    part = found[name]
    assert part["low"] <= part["value"] <= part["high"]


def test_nothing_remains_where_nothing_is_planted():
  fvu = _law(0.0, 3.0, 0.4)
  found = dark_matter.fit(WIDTHS, fvu, np.diag((1e-3 * fvu) ** 2))
  assert found["a"]["low"] < 0.005 and found["a"]["high"] < 0.05


def test_intervals_cover():
  rng = np.random.default_rng(0)
  truth = {"a": 0.05, "c": 0.4}
  fvu = _law(0.05, 3.0, 0.4)
  covariance = np.diag((0.01 * fvu) ** 2)
  inside = dict.fromkeys(truth, 0)
  for _ in range(60):
    drawn = rng.multivariate_normal(fvu, covariance)
    found = dark_matter.fit(WIDTHS, drawn, covariance, draws=60)
    for name, value in truth.items():
      inside[name] += found[name]["low"] <= value <= found[name]["high"]
  for count in inside.values():  # 90 % of 60 is 54; six are 3 standard errors
    assert 47 <= count <= 60


def test_too_few_widths_and_no_errors_are_refused():
  ones = np.ones(3)
  found = dark_matter.fit([1, 2, 2, 4], [0.1] * 4, np.eye(4))
  assert "3 widths" in found["refused"]
  found = dark_matter.fit(WIDTHS, _law(0, 1, 1), np.full((7, 7), np.nan))
  assert "no standard errors" in found["refused"]
  assert set(dark_matter.fit([1, 2, 3], ones, np.eye(3))) == {"refused"}


def test_the_linear_part_of_an_error_is_found():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(8_000, 6)).astype(np.float32) * [50, 1, 1, 1, 1, 1]
  mix = rng.normal(size=(6, 6)) / [[50], [1], [1], [1], [1], [1]]
  store = made.Rows(x, [100] * 80)
  sample = Sample.of(store, "res.1")
  linear = (x @ mix).astype(np.float32)
  noise = rng.normal(size=x.shape).astype(np.float32)
  noise *= linear.std() / noise.std()
  errors = {"half": linear + noise, "all": linear, "none": noise}
  found = dark_matter.LinearError(6, list(errors), sample)
  for block in sample.blocks("", 700, progress=False):
    part = slice(block.start, block.start + len(block.x))
    found.add(block, {name: error[part] for name, error in errors.items()})
  shares = found.finish()
  assert shares["all"]["vector"].mean == pytest.approx(1, abs=1e-3)
  assert shares["half"]["vector"].mean == pytest.approx(0.5, abs=0.05)
  assert shares["none"]["vector"].mean == pytest.approx(0, abs=0.02)
  assert shares["none"]["norm"].mean == pytest.approx(0, abs=0.02)
  assert shares["half"]["vector"].stderr > 0


def test_too_few_rows_to_fit_give_nothing():
  store = made.Rows(np.ones((12, 20)), [3] * 4)
  sample = Sample.of(store, "res.1")
  found = dark_matter.LinearError(20, ["a"], sample)
  for block in sample.blocks("", progress=False):
    found.add(block, {"a": block.x})
  assert found.finish() is None
