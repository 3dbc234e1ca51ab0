"""The interpretability figures show the result's numbers."""

import numpy as np
import pytest

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import interpretability as figure
from gemmascope_jax.studies.interpretability import ratings, study
from gemmascope_jax.studies.interpretability.token_statistics import (
  TokenStatistics,
)
from tests.studies.interpretability import planted

SAES = {
  "a": planted.sae("jumprelu", 1.0),
  "b": planted.sae("topk", 2.0),
  "random": planted.sae("jumprelu", 3.0),
}


@pytest.fixture(scope="module", name="result")
def _result(tmp_path_factory):
  kinds = {1.0: ("word", "noise") * 4, 2.0: ("word",) * 3, 3.0: ("noise",) * 9}

  def gather(sae):
    fill = float(sae.params.w_enc[0, 0])
    return planted.gathered(kinds[fill], seed=int(fill))

  return study.run(
    SAES,
    gather,
    TokenStatistics(),
    TokenStatistics(),
    tmp_path_factory.mktemp("answers"),
    untrained=["random"],
    progress=False,
  )


def _scores(sae):
  return [row["score"]["mean"] for row in sae["latents"] if row["score"]]


def _points(panel):
  """Each row's correlations, from the bottom."""
  return [
    np.asarray(line.get_xdata(), float)
    for line in panel.lines
    if line.get_alpha() == 0.55
  ]


def test_points_are_the_latents_and_marks_their_means(result):
  with plotting.style():
    drawn = figure.draw(result)
    assert list(drawn) == [
      "interpretability_correlation",
      "interpretability_detection",
    ]
    (panel,) = drawn["interpretability_correlation"].axes
    shuffled, others, *families = _points(panel)
    by_name = {sae["name"]: sae for sae in result["saes"]}
    # From the bottom up: untrained SAEs, then the last family.
    for values, name in zip(families, ("random", "b", "a"), strict=True):
      np.testing.assert_allclose(values, _scores(by_name[name]))
    means = [float(c.lines[0].get_xdata()[0]) for c in panel.containers]
    groups = {group["family"]: group for group in result["families"]}
    for mean, name in zip(
      means[2:], ("untrained", "topk", "jumprelu"), strict=True
    ):
      assert mean == pytest.approx(groups[name]["score"]["mean"])
    # The baselines are of trained SAEs alone.
    assert len(shuffled) == len(others) == 8 + 3
    labels = [text.get_text() for text in panel.texts]
    assert "JumpReLU\nn = 8, scored 100%" in labels
    assert "random-initialised\nn = 9, scored 100%" in labels
    assert "shuffled activations\nn = 11" in labels
    again = figure.draw(result)["interpretability_correlation"]
    assert plotting.png(again) == plotting.png(
      drawn["interpretability_correlation"]
    )


def test_the_bars_are_one_standard_error_over_latents(result):
  with plotting.style():
    (panel,) = figure.correlation(result).axes
    group = result["families"][0]
    (bars,) = panel.containers[-1].lines[2]
    ((low, high),) = (bar[:, 0] for bar in bars.get_segments())
    assert (high - low) / 2 == pytest.approx(group["score"]["stderr"])


def test_failures_are_missing_and_not_zero(result):
  spoilt = dict(result, saes=[dict(sae) for sae in result["saes"]])
  latents = [dict(row) for row in spoilt["saes"][0]["latents"]]
  latents[0]["score"] = None
  spoilt["saes"][0]["latents"] = latents
  groups = [dict(group) for group in result["families"]]
  groups[0]["coverage"] = groups[0]["coverage"] | {"scored": 7}
  spoilt["families"] = groups
  with plotting.style():
    (panel,) = figure.correlation(spoilt).axes
    values = _points(panel)[-1]
    np.testing.assert_allclose(values, _scores(result["saes"][0])[1:])
    labels = [text.get_text() for text in panel.texts]
    assert "JumpReLU\nn = 7, scored 88%" in labels


def test_areas_are_those_of_the_families(result):
  with plotting.style():
    panels = figure.detection(result).axes
    for panel, key in zip(panels, ("detection", "fuzzing"), strict=True):
      assert panel.get_title("left").startswith(key)
      for bar, group in zip(
        panel.containers, result["families"][::-1], strict=True
      ):
        mean, place = np.asarray(bar.lines[0].get_data(), float)[:, 0]
        assert mean == pytest.approx(group[key]["mean"])
        label = panels[0].get_yticklabels()[int(place)].get_text()
        count = group["coverage"]["scored"]
        assert label.endswith(f"\n{count} latents")
      low, high = panel.get_xlim()
      assert low < 0.5 < high


def test_a_family_without_an_area_has_its_place_and_no_point(result):
  groups = [dict(group) for group in result["families"]]
  groups[1]["fuzzing"] = None
  with plotting.style():
    left, right = figure.detection(result | {"families": groups}).axes
    assert len(left.containers) == 3 and len(right.containers) == 2
    places = [float(bar.lines[0].get_ydata()[0]) for bar in right.containers]
    assert places == [0, 2]


def test_people_s_ratings_are_bars_that_fill_the_whole(result):
  counts = {
    "jumprelu": {"YES": 6, "MAYBE": 3, "NO": 1},
    "topk": {"YES": 2, "MAYBE": 0, "NO": 2},
  }
  given = [
    ratings.Rating("Ann", family, family, number, label)
    for family, labels in counts.items()
    for number, label in enumerate(
      label for label, count in labels.items() for _ in range(count)
    )
  ]
  table = ratings.table(given)
  with plotting.style():
    drawn = figure.draw(result | {"ratings": table})
    assert "interpretability_ratings" in drawn
    (panel,) = drawn["interpretability_ratings"].axes
    bars = np.reshape([bar.get_height() for bar in panel.patches], (3, 2))
    np.testing.assert_allclose(bars, [[0.6, 0.5], [0.3, 0], [0.1, 0.5]])
    tops = [bar.get_y() + bar.get_height() for bar in panel.patches[4:]]
    np.testing.assert_allclose(tops, 1)
    names = panel.get_legend_handles_labels()[1]
    assert names == ["YES", "MAYBE", "NO"]
    ticks = [tick.get_text() for tick in panel.get_xticklabels()]
    assert ticks == [
      "JumpReLU\n10 latents\n10 ratings",
      "TopK\n4 latents\n4 ratings",
    ]
    # Intervals of YES from below, of NO from the top.
    ends = [
      segment[:, 1]
      for collection in panel.collections
      for segment in collection.get_segments()
    ]
    expected = []
    for group in table["families"]:
      low, high = group["intervals"]["no"]
      expected += [group["intervals"]["yes"], [1 - high, 1 - low]]
    np.testing.assert_allclose(ends, expected)
