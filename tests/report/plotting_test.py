import re
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import matplotlib.axis
import pytest

from gemmascope_jax.report import plotting


def _axis():
  return plotting.blank(4, 3).subplots().yaxis


def test_missing_matplotlib_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(ImportError, match=r"gemmascope_jax\[plots\]"):
    with plotting.style():
      pass


def test_style_overrides_the_users_and_is_restored():
  with matplotlib.rc_context({"font.size": 31, "svg.hashsalt": "theirs"}):
    with plotting.style():
      assert matplotlib.rcParams["font.size"] == 10
      assert matplotlib.rcParams["svg.hashsalt"] == "gemmascope_jax"
    assert matplotlib.rcParams["font.size"] == 31


def test_log_axis_only_if_all_values_are_positive():
  with plotting.style():
    axis = _axis()
    assert plotting.log_axis(axis, [0.1, 3.0], (0.1, 0.1))
    assert axis.get_scale() == "log"
    low, high = axis.axes.get_ylim()
    assert low == pytest.approx(0.1 * 30**-0.1)
    assert high == pytest.approx(3.0 * 30**0.1)
    axis = _axis()
    assert not plotting.log_axis(axis, [-0.1, 3.0], (0.1, 0.1))
    assert axis.get_scale() == "linear"
    assert axis.axes.get_ylim() == pytest.approx((-0.41, 3.31))
    axis = _axis()
    before = axis.axes.get_ylim()
    assert not plotting.log_axis(axis, [], (0.1, 0.1))
    assert axis.axes.get_ylim() == before


def test_ticks_are_plain_numbers():
  with plotting.style():
    axis = _axis()
    plotting.log_axis(axis, [0.02, 2.0], (0.0, 0.0))
    axis.axes.figure.draw_without_rendering()
    labels = [label.get_text() for label in axis.get_ticklabels()]
    assert {"0.05", "0.1", "0.5", "1"} <= set(labels)
    axis = _axis().axes.xaxis
    axis.axes.set_xlim(0, 1_100_000)
    plotting.short_numbers(axis)
    axis.axes.figure.draw_without_rendering()
    labels = [label.get_text() for label in axis.get_ticklabels()]
    assert {"0", "250k", "500k", "1M"} <= set(labels)


def test_same_figure_same_bytes_and_no_dates():
  def draw():
    figure = plotting.blank(4, 3)
    figure.subplots().errorbar([1, 2], [3, 4], yerr=[1, 1], label="$x$")
    return plotting.png(figure), plotting.svg(figure, "a")

  with plotting.style():
    first, second = draw(), draw()
  assert first == second
  assert b"tEXt" not in first[0] and b"tIME" not in first[0]


def test_svg_is_ready_for_a_page():
  with plotting.style():
    figure = plotting.blank(4, 3)
    figure.subplots().plot([1, 2], [3, 4], color=plotting.SERIES[0], marker="o")
    text = plotting.svg(figure, "curve")
  ElementTree.fromstring(text)
  assert "http" not in text and "<!--" not in text and "<style" not in text
  ids = re.findall(r'\bid="([^"]+)"', text)
  assert ids and all(name.startswith("curve-") for name in ids)
  assert len(ids) == len(set(ids))
  links = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
  assert links and all((a or b) in ids for a, b in links)
  assert "var(--c0072b2,#0072b2)" in text


def test_every_colour_has_a_twin_for_the_dark():
  for colour in (*plotting.SERIES, *plotting._SWEEP):
    assert colour in plotting.DARK
  for count in (1, 2, 4, 8, 20):
    styles = plotting.sweep_styles(count)
    assert len(styles) == count
    assert len(set(map(str, styles))) == count or count > 8


def test_frame_makes_room_for_what_it_writes():
  with plotting.style():
    figure = plotting.blank(6, 4)
    panel = figure.subplots()
    plotting.frame(figure, "Title", "fact " * 40, "note")
    figure.draw_without_rendering()
    below = min(
      text.get_window_extent().y0
      for text in figure.texts
      if text.get_text() == "Title" or text.get_text().startswith("fact")
    )
    notes = next(t for t in figure.texts if t.get_text() == "note")
    box = panel.get_tightbbox()
    assert box.y1 < below and box.y0 > notes.get_window_extent().y1
    lines = [t for t in figure.texts if t.get_text().startswith("fact")]
    assert len(lines) > 1
    right = max(t.get_window_extent().x1 for t in lines)
    assert right <= figure.bbox.x1
