"""The width figures show the result's numbers."""

import numpy as np

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import width as figure
from gemmascope_jax.studies import width
from tests.studies.activity import rows as made
from tests.studies.width import study_test


def _result():
  rng = np.random.default_rng(0)
  x = np.abs(rng.normal(size=(2_000, study_test.DIMS)))
  x[:, 6] = rng.choice([-1.0, 1.0], 2_000)
  rows = made.Rows(x, [50] * 40)
  ladder = [study_test.OWN[:2]]
  for extra in ((2, 0), (3, 0), (4, 0)):
    ladder.append([*ladder[-1], extra])
  saes = {f"of {len(each)}": study_test._sae(each) for each in ladder}
  return width.run(saes, rows, study_test.SITE, progress=False)


def test_every_figure_shows_its_numbers():
  result = _result()
  with plotting.style():
    drawn = figure.draw(result)
    assert set(drawn) == {
      "width_fidelity",
      "width_frequency",
      "width_splitting",
      "width_dark_matter",
    }
    (panel,) = drawn["width_fidelity"].axes
    shown = [float(c.lines[0].get_ydata()[0]) for c in panel.containers]
    by_width = sorted(result["saes"], key=lambda sae: sae["width"])
    np.testing.assert_allclose(shown, [s["fvu"]["mean"] for s in by_width])
    _, right = drawn["width_splitting"].axes
    widths = sum(bar.get_width() for bar in right.patches)
    assert abs(widths - 300) < 1e-6  # three steps of 100 %
    (law,) = drawn["width_dark_matter"].axes
    fitted = result["ladders"][0]["law"]["fitted"]
    assert any(
      len(line.get_ydata()) == len(fitted)
      and np.allclose(np.asarray(line.get_ydata(), float), fitted)
      for line in law.lines
    )


def test_a_short_ladder_has_no_law():
  rng = np.random.default_rng(1)
  rows = made.Rows(np.abs(rng.normal(size=(400, study_test.DIMS))), [20] * 20)
  saes = {
    "a": study_test._sae(study_test.OWN[:2]),
    "b": study_test._sae(study_test.OWN),
  }
  result = width.run(saes, rows, study_test.SITE, progress=False)
  with plotting.style():
    assert "width_dark_matter" not in figure.draw(result)
