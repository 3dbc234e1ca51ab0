"""The frequency figure shows the result's numbers."""

import numpy as np
import pytest

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import frequency as figure
from gemmascope_jax.studies import frequency
from tests.studies.activity import rows as made


@pytest.fixture(scope="module")
def result():
  rng = np.random.default_rng(0)
  rates = np.r_[np.full(60, 1e-2), np.full(4, 0.3), np.zeros(16)]
  store = made.Rows(rng.random((4_000, 80)) < rates, [100] * 40)
  saes = {"one": made.identity(80), "two": made.identity(80, threshold=2)}
  return frequency.run(saes, store, "res.1", progress=False)


def test_lines_are_the_histograms_and_marks_the_shares(result):
  with plotting.style():
    drawn = figure.draw(result)
    assert list(drawn) == ["frequency"]
    left, right = drawn["frequency"].axes
    lines = {line.get_label(): line for line in left.lines}
    shown = np.nansum(lines["one"].get_ydata())
    assert shown == pytest.approx(64 / 80 * 100)
    assert np.nansum(lines["two"].get_ydata()) == 0  # dead
    marks = np.asarray(right.containers[0].lines[0].get_ydata(), float)
    np.testing.assert_allclose(marks, [20, marks[1], 5])
    assert left.get_xlabel() and right.get_ylabel()
    assert plotting.png(drawn["frequency"]) == plotting.png(
      figure.draw(result)["frequency"]
    )
