"""The figure of latents that persist shows the result's numbers."""

import numpy as np

from gemmascope_jax.circuits import persistence
from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import persistent as figure
from tests.circuits.persistent_test import _three


def test_shares_chance_and_scores_are_the_results():
  saes, store = _three()
  result = persistence.run(saes, store, progress=False)
  with plotting.style():
    drawn = figure.draw(result)["persistent"]
    survival, cosine, phi = drawn.axes
    assert len(survival.containers) == 3
    for name, line in zip(result["criteria"], survival.containers, strict=True):
      heights = np.asarray(line.lines[0].get_ydata(), float)
      shares = [each["mean"] * 100 for each in result["survival"][name]]
      np.testing.assert_allclose(heights, shares)
    ticks = [text.get_text() for text in survival.get_xticklabels()]
    assert ticks == ["res.4", "res.5", "res.6"]
    real = result["steps"][0]["scores"]["direction"]["real"]
    np.testing.assert_array_equal(cosine.lines[0].get_ydata(), real)
    assert "phi" in phi.get_xlabel()
    words = " ".join(text.get_text() for text in drawn.texts)
    assert "by both, the same pair" in words and "2,000 rows" in words
    assert "do not count" not in words
    result["steps"][0]["same_number"]["direction"] = 3
    again = figure.draw(result)["persistent"]
    assert "3 pairs of the same number" in " ".join(
      text.get_text() for text in again.texts
    )
    alone = figure.draw(persistence.run(saes, progress=False))["persistent"]
    assert len(alone.axes) == 2
