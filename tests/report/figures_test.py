import copy

import numpy as np
import pytest

from gemmascope_jax.report import figures, plotting, results


@pytest.fixture(autouse=True)
def _style():
  with plotting.style():
    yield


def _container(panel, start):
  return next(c for c in panel.containers if c.get_label().startswith(start))


def _texts(panel):
  return [text.get_text() for text in panel.texts]


@pytest.mark.parametrize("panel, metric", [(0, "delta_loss"), (1, "fvu")])
def test_points_and_error_bars_are_the_results(fidelity, panel, metric):
  result = results.parse_fidelity(fidelity)
  axes = figures.sparsity_fidelity(result).axes[panel]
  container = _container(axes, "JumpReLU SAEs, 4,096 latents")
  line, _, (horizontal, vertical) = container.lines
  rows = sorted(result.saes, key=lambda row: row.l0.mean)
  means = [getattr(row, metric).mean for row in rows]
  assert list(line.get_xdata()) == [row.l0.mean for row in rows]
  assert list(line.get_ydata()) == means
  for row, across, along in zip(
    rows, horizontal.get_segments(), vertical.get_segments(), strict=True
  ):
    value = getattr(row, metric)
    np.testing.assert_allclose(
      along[:, 1], [value.mean - value.stderr, value.mean + value.stderr]
    )
    np.testing.assert_allclose(
      across[:, 0],
      [row.l0.mean - row.l0.stderr, row.l0.mean + row.l0.stderr],
    )
  assert axes.get_xscale() == axes.get_yscale() == "log"


@pytest.mark.parametrize("panel, metric", [(0, "delta_loss"), (1, "fvu")])
def test_baselines(fidelity, panel, metric):
  result = results.parse_fidelity(fidelity)
  axes = figures.sparsity_fidelity(result).axes[panel]
  value = {row.name: getattr(row, metric).mean for row in result.baselines}
  levels = [
    line.get_ydata()[0] for line in axes.lines if line.get_xdata()[0] == 0
  ]
  assert sorted(levels) == [value["mean ablation"], value["zero ablation"]]
  assert any(t.startswith("mean ablation: ") for t in _texts(axes))
  assert any(t.startswith("zero ablation: ") for t in _texts(axes))
  pca = _container(axes, "PCA, 50 components").lines[0]
  assert list(pca.get_xdata()) == [50]
  assert list(pca.get_ydata()) == [value["PCA, 50 components"]]
  hollow = [
    container.lines[0]
    for container in axes.containers
    if container.lines[0].get_markerfacecolor() == plotting.PAPER
  ]
  assert sorted(float(line.get_xdata()[0]) for line in hollow) == sorted(
    row.l0.mean for row in result.saes
  )


def test_sparsity_coefficients_and_facts_are_written(fidelity):
  result = results.parse_fidelity(fidelity)
  figure = figures.sparsity_fidelity(result)
  for panel in figure.axes:
    for text in ("λ 1e-4", "λ 2e-4", "λ 4e-4", "λ 8e-4"):
      assert text in _texts(panel)
  words = " ".join(text.get_text() for text in figure.texts)
  for fact in ("res.5", "gemma-3-270m", "16,300 tokens", "one standard error"):
    assert fact in words
  assert figure.axes[0].get_ylabel() == "delta loss (nats/token)"
  assert figure.axes[0].get_xlabel() == "L0 (active latents per token)"
  bare = figures.sparsity_fidelity(result, with_title=False)
  assert not bare.texts


def test_a_line_for_each_family_and_width(fidelity):
  for row in copy.deepcopy(fidelity["rows"][:4]):
    row |= {"width": 16_384, "name": f"wide {row['name']}"}
    fidelity["rows"].append(row)
  figure = figures.sparsity_fidelity(results.parse_fidelity(fidelity))
  for axes in figure.axes:
    lines = [
      _container(axes, f"JumpReLU SAEs, {width} latents").lines[0]
      for width in ("4,096", "16,384")
    ]
    assert all(len(line.get_xdata()) == 4 for line in lines)
    assert lines[0].get_color() != lines[1].get_color()
    assert lines[0].get_marker() != lines[1].get_marker()
    # Twins at one place share their label.
    assert _texts(axes).count("λ 1e-4") == 1


def test_a_negative_delta_loss_makes_its_axis_linear(fidelity):
  fidelity["rows"][0]["delta_loss"]["mean"] = -0.01
  figure = figures.sparsity_fidelity(results.parse_fidelity(fidelity))
  assert figure.axes[0].get_yscale() == "linear"
  assert figure.axes[1].get_yscale() == "log"
  plotting.png(figure)


def test_an_error_bar_that_crosses_zero(fidelity):
  fidelity["rows"][0]["delta_loss"] = {"mean": 0.1, "stderr": 0.2, "n": 2}
  figure = figures.sparsity_fidelity(results.parse_fidelity(fidelity))
  assert figure.axes[0].get_yscale() == "log"
  plotting.png(figure)


def test_one_sae_without_baselines_or_errors(fidelity):
  fidelity["rows"] = fidelity["rows"][:1]
  row = fidelity["rows"][0]
  del row["sparsity_coefficient"]
  for metric in ("l0", "fvu", "delta_loss"):
    row[metric] |= {"stderr": None, "n": 1}
  figure = figures.sparsity_fidelity(results.parse_fidelity(fidelity))
  plotting.png(figure)
  assert not _texts(figure.axes[0])


def test_names_are_not_mathematics(fidelity):
  fidelity["model"]["label"] = r"gemma $\frac{$ 5"
  figure = figures.sparsity_fidelity(results.parse_fidelity(fidelity))
  assert plotting.png(figure)


def test_spectrum_with_the_saes_over_it(fidelity):
  result = results.parse_fidelity(fidelity)
  axes = figures.spectrum(result).axes[0]
  pca = next(x for x in axes.lines if x.get_label().startswith("PCA"))
  assert list(pca.get_xdata()) == fidelity["spectrum"]["components"]
  assert list(pca.get_ydata()) == fidelity["spectrum"]["fvu"]
  line = _container(axes, "JumpReLU").lines[0]
  assert sorted(line.get_xdata()) == sorted(row.l0.mean for row in result.saes)
