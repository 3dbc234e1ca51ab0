"""The instruct figure shows the result's numbers."""

import numpy as np

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import instruct as figure
from tests.studies.instruct_test import _result


def test_parts_stand_apart():
  result = _result(
    {
      "a": ("base", False, 0.4, (-0.1, 0.5), 20),
      "b": ("base", True, 0.4, 0.5, 15),
      "c": ("tuned", False, 0.4, 0.5, 20),
    }
  )
  with plotting.style():
    axes = figure.draw(result)["instruct"].axes
    assert len(axes) == 4
    for panel, part, metric in (
      (axes[0], "rollout", "delta_loss"),
      (axes[1], "prompt", "delta_loss"),
      (axes[2], "rollout", "fvu"),
      (axes[3], "prompt", "fvu"),
    ):
      for row, bars in zip(result["saes"], panel.containers, strict=True):
        found = row["parts"][part]
        np.testing.assert_allclose(
          bars.lines[0].get_xydata()[0],
          [found["l0"]["mean"], found[metric]["mean"]],
        )
    labels = axes[0].get_legend_handles_labels()[1]
    assert labels[1] == "res.1: of the base model, rescaled activations"
