"""The subsets figure shows the result's numbers."""

import numpy as np

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import subsets as figure
from tests.studies.subsets_test import _result


def test_a_mark_for_every_sae_and_subset():
  deltas = {"arxiv": 0.5, "dm_mathematics": 0.1, "europarl": 0.9}
  result, _ = _result({"a": deltas, "b": deltas})
  with plotting.style():
    drawn = figure.draw(result)["subsets"]
    left, right = drawn.axes
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels == ["arxiv", "dm_mathematics", "europarl*"]
    for panel, metric in ((left, "delta_loss"), (right, "fvu")):
      for sae, bars in zip(result["saes"], panel.containers, strict=True):
        expected = [of[metric]["mean"] for of in sae["subsets"].values()]
        np.testing.assert_allclose(bars.lines[0].get_xydata()[:, 0], expected)
      assert panel.get_xlabel()
    words = " ".join(text.get_text() for text in drawn.texts)
    assert "speeches" in words and "no text for hackernews" in words
