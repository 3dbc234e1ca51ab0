"""The circuit's figure and table show what the result says."""

import numpy as np
import pytest

from gemmascope_jax.report import circuit_table, plotting
from gemmascope_jax.report.study_figures import circuit as figure
from tests.circuits.export_test import result


def _words(drawn):
  (panel,) = drawn.axes
  return " ".join(text.get_text() for text in [*drawn.texts, *panel.texts])


def test_size_is_effect_and_colour_its_sign():
  with plotting.style():
    drawn = figure.draw(result())["circuit"]
    (panel,) = drawn.axes
    points = panel.collections
    areas = [float(each.get_sizes()[0]) for each in points]
    effects = [2.0, 1.0, 0.6, 0.25, 0.15]
    slope, offset = np.polyfit(effects, areas, 1)
    np.testing.assert_allclose(areas, slope * np.array(effects) + offset)
    assert offset < areas[-1] and slope > 0
    supports, opposes = (tuple(points[i].get_facecolor()[0]) for i in (0, 2))
    colours = [tuple(each.get_facecolor()[0]) for each in points]
    expected = [supports, supports, opposes, opposes, supports]
    assert colours == expected and supports != opposes
    # Tokens go right, layers up: of a node's own token and site.
    at = [each.get_offsets()[0] for each in points]
    assert at[3][0] == at[4][0] < at[0][0]
    assert at[4][1] < at[3][1] < at[2][1]
    ticks = [text.get_text() for text in panel.get_xticklabels()]
    assert ticks == ["<bos>", " girls\n(girl)", " near"]
    rows = [text.get_text() for text in panel.get_yticklabels()]
    assert rows == ["embedding", "att.1", "res.1", "logit"]
    assert len(panel.lines) == len(result()["edges"]) + 2
    again = figure.draw(result())["circuit"]
    assert plotting.png(again) == plotting.png(drawn)


def test_words_say_what_was_done():
  with plotting.style():
    words = _words(figure.draw(result())["circuit"])
    assert '“are” and not “"is”' in words
    assert "logit difference 2.00 on the clean prompt, -1.00" in words
    assert "res.1 latents -1.00, errors +0.50" in words
    assert "gradients at the clean prompt" in words
    changed = result() | {"patch_tokens": None, "patch_value": None, "steps": 8}
    changed["wrong"] = None
    value = {"mean": 0.98, "stderr": 0.01, "n": 5}
    changed["agreement"] = {"latents": {"nodes": 5, "pearson": value}}
    words = _words(figure.draw(changed)["circuit"])
    assert "against its absence" in words
    assert "integrated gradients of 8 steps" in words
    assert "correlation 0.980 ± 0.010" in words


def test_many_nodes_of_one_place_are_counted():
  many = result()
  many["nodes"] += [
    many["nodes"][0] | {"latent": 5 + i, "effect": -0.1} for i in range(15)
  ]
  many["edges"].append({"source": 19, "target": None, "weight": 0.1})
  with plotting.style():
    drawn = figure.draw(many)["circuit"]
    assert "+ 5 more" in _words(drawn)
    (panel,) = drawn.axes
    assert len(panel.collections) == 15
    assert len(panel.lines) == len(result()["edges"]) + 2


def test_no_difference_is_an_error():
  with pytest.raises(ValueError, match="the circuit has no nodes"):
    figure.draw(result() | {"nodes": [], "edges": []})


def test_the_table_has_a_line_a_node():
  text = circuit_table.table(result(), rows=1)
  lines = text.splitlines()
  assert lines[0].startswith("logit of ␣are less")
  assert "2.000, on the patch prompt -1.000 (p = 0.250)" in lines[0]
  assert [line.split()[0] for line in lines[3:6]] == ["embed", "att.1", "res.1"]
  assert lines[8].split() == (
    ["res.1", "2", "␣near", "4", "3.00", "0.00", "-2.000", "␣were"]
  )
  assert len(lines) == 9
  every = circuit_table.table(result()).splitlines()
  assert len(every) == 13 and every[10].split()[3] == "error"
  assert "-0.900" in every[9]
