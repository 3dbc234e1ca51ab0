"""The uniformity figure shows the result's numbers, a line a kind of SAE."""

import numpy as np
import pytest

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import uniformity as figure
from tests.studies.uniformity_test import planted_result


def _result():
  # The site's narrow SAEs come last, and each line's in no order.
  groups = {("res.1", 16): (-0.1, 0.6), ("mlp.1", 8): (0.1, 0.5)}
  result = planted_result(groups | {("res.1", 8): (-0.1, 0.55)})
  result["rows"].reverse()
  return result


def _colour(panel, line):
  return panel.containers[line].lines[0].get_color()


def _words(drawn):
  return " ".join(text.get_text() for text in drawn.texts)


def test_points_are_the_saes_and_bars_their_errors():
  result = _result()
  with plotting.style():
    drawn = figure.draw(result)
    assert list(drawn) == ["uniformity"]
    panels = [p for p in drawn["uniformity"].axes if p.axison]
    assert [panel.get_title("left") for panel in panels] == ["res.1", "mlp.1"]
    for panel, widths in zip(panels, ((8, 16), (8,)), strict=True):
      assert panel.get_xscale() == "log" and panel.get_xlabel()
      for line, width in zip(panel.containers, widths, strict=True):
        rows = [
          row
          for row in result["rows"]
          if (row["site"], row["width"]) == (panel.get_title("left"), width)
        ]
        rows.sort(key=lambda row: row["l0"]["mean"])
        points, _, (_, upright) = line.lines
        x, y = np.asarray(points.get_data(), float)
        np.testing.assert_allclose(x, [row["l0"]["mean"] for row in rows])
        np.testing.assert_allclose(y, [row["r_l0"]["mean"] for row in rows])
        bars = [np.ptp(bar[:, 1]) / 2 for bar in upright.get_segments()]
        errors = [row["r_l0"]["stderr"] for row in rows]
        np.testing.assert_allclose(bars, errors)
    assert panels[0].get_ylabel().startswith("r_L0")
    # One entry a kind, and a kind looks the same in every panel.
    (legend,) = drawn["uniformity"].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["JumpReLU, 8 latents", "JumpReLU, 16 latents"]
    colours = [_colour(panel, 0) for panel in panels]
    assert colours[0] == colours[1] != _colour(panels[0], 1)
    again = figure.draw(result)["uniformity"]
    assert plotting.png(again) == plotting.png(drawn["uniformity"])


def test_words_say_what_was_done_and_what_is_missing():
  result = _result()
  with plotting.style():
    words = _words(figure.draw(result)["uniformity"])
    assert "tiny: 9 SAEs on 2,000 tokens in 50 sequences of 42" in words
    assert "the token's own logit, gradients at the activation" in words
    assert "soft-capped" in words and "one standard error" in words
    assert "Tokens without" not in words and "Not shown" not in words
    result |= {"target": "all", "at": "x_hat", "softcap": False}
    result["rows"][0] |= {"r_l0": None, "silent_tokens": 2000}
    result["rows"][1] |= {"silent_tokens": 90, "flat_tokens": 10}
    words = _words(figure.draw(result)["uniformity"])
    assert "8 SAEs" in words and "soft-capped" not in words
    assert "token and all later ones" in words
    assert "SAE's reconstruction" in words
    assert "up to 100.0 % of an SAE's tokens" in words
    assert "Not shown: 1 SAE without any." in words


def test_one_sequence_has_no_bars_and_no_saes_are_an_error():
  result = planted_result({("res.1", 8): (-0.1, 0.6)}, sequences=1)
  with plotting.style():
    (panel,) = figure.draw(result)["uniformity"].axes
    points, _, (_, upright) = panel.containers[0].lines
    assert len(points.get_ydata()) == 3
    assert all(np.ptp(bar[:, 1]) == 0 for bar in upright.get_segments())
    for row in result["rows"]:
      row["r_l0"] = None
    with pytest.raises(ValueError, match="no SAE has an r_L0"):
      figure.draw(result)
