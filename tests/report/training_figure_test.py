import json

import numpy as np
import pytest

from gemmascope_jax.report import plotting, training_figure, training_metrics


@pytest.fixture(autouse=True)
def _style():
  with plotting.style():
    yield


@pytest.fixture
def members(folders):
  return training_metrics.read_metrics(folders[1] / "metrics.jsonl")


def test_training_curves_show_every_member(members):
  figure = training_figure.training_curves(members)
  titles = [panel.get_title("left") for panel in figure.axes]
  assert titles == [
    "loss",
    "FVU",
    "L0",
    "dead latents",
    "mean threshold",
    "kernel share",
    "speed",
    "firing rates at the end",
    "",
  ]
  keys = (
    "loss",
    "fvu",
    "l0",
    "dead_fraction",
    "threshold_mean",
    "kernel_share",
  )
  keys += ("rows_per_second",)
  for panel, key in zip(figure.axes, keys, strict=False):
    assert panel.get_xlabel() == "activations seen"
    for line, member in zip(panel.lines, members, strict=True):
      np.testing.assert_array_equal(line.get_xdata(), member.rows)
      np.testing.assert_array_equal(line.get_ydata(), member.curves[key])
  for line, member in zip(figure.axes[-2].lines, members, strict=True):
    np.testing.assert_array_equal(line.get_ydata(), member.rates.counts)
    np.testing.assert_allclose(
      np.log10(line.get_xdata()), np.arange(-5.875, 0, 0.25)
    )
  legend = figure.axes[-1].get_legend()
  assert [text.get_text() for text in legend.texts] == [
    member.name for member in members
  ]


def test_training_curves_fall_back_to_steps(folders, metrics):
  path = folders[1] / "metrics.jsonl"
  for line in metrics:
    for key in ("rows", "kernel_share", "threshold_mean", "firing_rates"):
      del line[key]
  path.write_text("".join(json.dumps(line) + "\n" for line in metrics))
  members = training_metrics.read_metrics(path)
  figure = training_figure.training_curves(members)
  assert figure.axes[0].get_xlabel() == "training step"
  assert list(figure.axes[0].lines[0].get_xdata()) == list(members[0].steps)
  assert sum(bool(panel.get_title("left")) for panel in figure.axes) == 5


def test_members_of_different_families_share_panels(folders, metrics):
  path = folders[1] / "metrics.jsonl"
  for line in metrics:
    if line["name"] == "sparsity 0.0002":
      del line["threshold_mean"]
  path.write_text("".join(json.dumps(line) + "\n" for line in metrics))
  members = training_metrics.read_metrics(path)
  figure = training_figure.training_curves(members, "Training", "A model.")
  panel = next(
    p for p in figure.axes if p.get_title("left") == "mean threshold"
  )
  drawn = [np.isfinite(line.get_ydata()).any() for line in panel.lines]
  assert drawn == [True, False, True, True]
