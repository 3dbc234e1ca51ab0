"""The transcoders figure shows the result's numbers."""

import numpy as np

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import transcoders as figure
from tests.studies.transcoders_test import SAES, _result


def test_a_line_for_every_kind():
  members = SAES | {
    "t": ("transcoder", 0.8, 0.6, 20),
    "s": ("skip transcoder", 0.4, 0.2, 20),
  }
  result, *_ = _result(members)
  with plotting.style():
    left, right = figure.draw(result)["transcoders"].axes
    for panel, metric in ((left, "delta_loss"), (right, "fvu")):
      labels = [bars.get_label() for bars in panel.containers]
      assert labels == [
        "mlp.1: SAE",
        "mlp.1: transcoder",
        "mlp.1: skip transcoder",
      ]
      np.testing.assert_allclose(
        panel.containers[0].lines[0].get_xydata()[:, 1],
        [row[metric]["mean"] for row in result["saes"][:2]],
      )
      assert panel.get_xscale() == "log" and panel.get_xlabel()
