"""The fidelity figure shows the result's numbers, a line a kind of SAE."""

import numpy as np

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import fidelity as figure
from gemmascope_jax.studies import side_by_side
from tests.studies.side_by_side_test import _case


def test_points_are_the_saes():
  members = {"b": (0.2, 0.1, 30), "a": (0.5, 0.2, 10)}
  result = side_by_side.result(*_case({"res.1": members, "mlp.1": members}))
  with plotting.style():
    drawn = figure.draw(result)["fidelity"]
    left, right = drawn.axes
    assert len(left.containers) == 2
    by_name = {s["name"]: s for s in result["saes"] if s["site"] == "res.1"}
    x, y = np.asarray(left.containers[0].lines[0].get_data(), float)
    np.testing.assert_allclose(x, [by_name[n]["l0"]["mean"] for n in "ab"])
    expected = [by_name[n]["delta_loss"]["mean"] for n in "ab"]
    np.testing.assert_allclose(y, expected)
    assert left.get_xscale() == right.get_yscale() == "log"
    labels = left.get_legend_handles_labels()[1]
    assert labels[0] == "res.1: JumpReLU, 8 latents"
