"""Scores against scipy and closed forms; standard errors against repetition."""

import numpy as np
import pytest
from scipy import stats

from gemmascope_jax.studies.interpretability import scores


def _contexts(random, n=12, lengths=(5, 20)):
  sizes = random.integers(*lengths, n)
  true = [np.maximum(random.normal(-0.5, 1, size), 0) for size in sizes]
  simulated = [x + random.normal(0, 0.7, len(x)) for x in true]
  return true, simulated


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_simulation_is_pearson(scale, shift):
  true, simulated = _contexts(np.random.default_rng(0))
  expected = stats.pearsonr(np.concatenate(true), np.concatenate(simulated))
  moved = [(y + shift) * scale for y in simulated]
  found = scores.simulation([x * scale for x in true], moved)
  assert found.mean == pytest.approx(expected.statistic, rel=1e-9)
  assert found.n == 12


def test_the_standard_error_is_the_jackknife_of_pearson():
  true, simulated = _contexts(np.random.default_rng(1))
  left = []
  for i in range(12):
    parts = [np.concatenate(x[:i] + x[i + 1 :]) for x in (true, simulated)]
    left.append(stats.pearsonr(*parts).statistic)
  expected = np.sqrt(11 / 12 * np.square(left - np.mean(left)).sum())
  found = scores.simulation(true, simulated)
  assert found.stderr == pytest.approx(expected, rel=1e-9)


def test_nothing_to_explain_is_none_and_nothing_predicted_is_zero():
  flat, true = [np.full(4, 0.1)] * 3, [np.arange(4.0)] * 3
  assert scores.simulation(flat, true) is None
  assert scores.simulation([np.zeros(4)] * 3, true) is None
  assert scores.simulation([], []) is None
  assert scores.simulation(true, flat).mean == 0
  assert scores.is_constant(flat) and not scores.is_constant(true)


def test_a_score_that_hangs_on_one_context_has_no_standard_error():
  true = [np.array([0, 3.0, 0]), np.zeros(3), np.zeros(3)]
  found = scores.simulation(true, [np.array([0, 1.0, 0])] * 3)
  assert 0 < found.mean < 1 and found.stderr is None
  assert scores.simulation(true[:1], true[:1]).stderr is None


def test_auroc_is_the_mann_whitney_statistic():
  random = np.random.default_rng(2)
  values = random.integers(0, 6, 40).astype(float)  # with ties
  labels = random.random(40) < 0.4
  expected = stats.mannwhitneyu(values[labels], values[~labels]).statistic
  expected /= labels.sum() * (~labels).sum()
  assert scores.auroc(values, labels) == pytest.approx(expected)
  assert scores.auroc(values, np.ones(40, bool)) is None
  # Normals one deviation apart: Phi(1 / sqrt(2)).
  labels = random.random(200_000) < 0.5
  values = random.normal(size=200_000) + labels
  expected = stats.norm.cdf(1 / np.sqrt(2))
  assert scores.auroc(values, labels) == pytest.approx(expected, abs=0.005)


def test_detection_and_fuzzing_look_at_contexts_and_at_tokens():
  true = [
    np.array([0, 2.0, 0]),
    np.array([1.0, 0, 0]),
    np.zeros(3),
    np.zeros(3),
  ]
  # The first context's prediction is strong but at the wrong token.
  simulated = [
    np.array([5.0, 1, 0]),
    np.array([3.0, 1, 0]),
    np.array([4.0, 4, 4]),
    np.zeros(3),
  ]
  assert scores.detection(true, simulated).mean == 3 / 4
  # Tokens on which it fires: 1, 3; others: 5, 0, 1, 0.
  assert scores.fuzzing(true, simulated).mean == (2.5 + 3) / 8
  assert scores.detection(true[:2], simulated[:2]) is None
  assert scores.fuzzing(true[2:], simulated[2:]) is None


def _draw(random, n):
  """Contexts that differ in how well they are predicted."""
  true, simulated = [], []
  for _ in range(n):
    fires = random.random(16) < 0.3 * (random.random() < 0.6)
    x = np.where(fires, random.gamma(2, 1, 16), 0)
    noise = random.choice([0.3, 1.5])
    true.append(x)
    simulated.append(x + random.normal(0, noise, 16) + random.normal(0, 0.5))
  return true, simulated


def _pearson(true, simulated):
  return stats.pearsonr(*map(np.concatenate, (true, simulated))).statistic


def _auroc(true, simulated):
  peaks = np.array([np.max(y) for y in simulated])
  return scores.auroc(peaks, np.array([np.max(x) > 0 for x in true]))


@pytest.mark.parametrize(
  ("score", "plain"),
  [(scores.simulation, _pearson), (scores.detection, _auroc)],
)
def test_standard_errors_are_the_spread_over_repetitions(score, plain):
  random = np.random.default_rng(3)
  truth = plain(*_draw(random, 20_000))
  found = [score(*_draw(random, 60)) for _ in range(300)]
  means = np.array([each.mean for each in found])
  errors = np.array([each.stderr for each in found])
  assert means.mean() == pytest.approx(truth, abs=0.02)
  assert errors.mean() == pytest.approx(means.std(), rel=0.15)
  held = np.abs(means - truth) < 1.96 * errors
  assert 0.9 < held.mean() < 0.985
