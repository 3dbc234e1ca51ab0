"""The position figure shows the result's numbers."""

import numpy as np

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import position as figure
from gemmascope_jax.studies import position
from tests.studies.position_test import LENGTH, _pair


def test_lines_are_the_bins():
  names = ("a", "b")
  records = {n: _pair(np.linspace(0.1, 0.3, LENGTH), 0.1) for n in names}
  l0 = {"mean": 12.3, "stderr": 1.0, "n": 3}
  rows = [{"name": n, "site": "res.1", "l0": l0} for n in names]
  result = position.result(rows, records)
  with plotting.style():
    drawn = figure.draw(result)["position"]
    left, right = drawn.axes
    bins = result["saes"][0]["bins"]
    np.testing.assert_allclose(
      left.lines[0].get_ydata(), bins["reconstruction"]
    )
    there = [y for y in bins["delta_loss"] if y is not None]
    np.testing.assert_allclose(right.lines[1].get_ydata(), there)
    assert left.lines[0].get_label() == "res.1, L0 12 (a)"
    for axis in (left, right):
      assert axis.get_xlabel() and axis.get_ylabel()
      assert axis.get_ylim()[0] <= 0
