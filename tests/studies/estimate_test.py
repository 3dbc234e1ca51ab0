"""Ratios and standard errors: closed forms, and coverage by simulation."""

import numpy as np
import pytest

from gemmascope_jax.studies.estimate import (
  combination,
  paired_difference,
  ratio,
)


def test_equal_weights_give_the_plain_standard_error():
  values = np.random.default_rng(0).normal(size=50)
  found = ratio(values * 7, np.full(50, 7.0))
  assert found.mean == pytest.approx(values.mean())
  assert found.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(50))
  assert found.n == 50


def test_sequences_of_no_weight_do_not_count():
  found = ratio(np.array([1.0, 2.0, 99.0]), np.array([1.0, 1.0, 0.0]))
  assert (found.mean, found.n) == (1.5, 2)


def test_one_sequence_has_no_standard_error():
  assert ratio(np.array([3.0]), np.array([2.0])).stderr is None


def test_nothing_to_average_is_an_error():
  with pytest.raises(ValueError, match="no sequence has a token that counts"):
    ratio(np.zeros(3), np.zeros(3))


def test_intervals_cover_as_often_as_they_say():
  """95 % intervals of an unequal-weight ratio over 2,000 simulated studies."""
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(2_000):
    weight = rng.integers(20, 200, 60)
    effect = rng.normal(0.3, 0.2, 60)  # differs between sequences
    found = ratio(weight * effect + rng.normal(0, 5, 60), weight)
    covered += abs(found.mean - 0.3) < 1.96 * found.stderr
  assert 0.92 < covered / 2_000 < 0.97


def _clustered(rng, effects, sequences=60, shared=0.5, own=0.1):
  """(sums [K, n], lengths [n], value of each token [K, n, T], mask [n, T]).

  Tokens of a sequence share its difficulty, and the longer sequences are the
  harder ones, so that a mean of sequence means would miss the ratio of sums.
  """
  length = rng.integers(5, 120, sequences)
  difficulty = rng.normal(0, shared, sequences) + _harder(length)
  mask = np.arange(120) < length[:, None]
  values = np.stack(
    [
      effect
      + (difficulty + rng.normal(0, own, sequences))[:, None]
      + rng.normal(0, 0.4, mask.shape)
      for effect in effects
    ]
  )
  return (values * mask).sum(axis=2), length.astype(float), values, mask


def _harder(length):
  return 0.005 * (length - 62)


def _truth(effect):
  """E[sum] / E[length] of `_clustered`, exactly."""
  lengths = np.arange(5, 120)
  return (lengths * (effect + _harder(lengths))).sum() / lengths.sum()


def _jackknife(statistic, n):
  """Standard error of statistic(sequences) with each sequence left out."""
  left = np.array([statistic(np.delete(np.arange(n), i)) for i in range(n)])
  return np.sqrt((n - 1) / n * np.square(left - left.mean()).sum())


def _bootstrap(statistic, n, rng, draws=3_000):
  return np.std([statistic(rng.integers(0, n, n)) for _ in range(draws)])


@pytest.mark.parametrize("coefficients", [[1.0], [1, -1], [-0.7, 0.2, 0.9]])
def test_combinations_have_the_error_of_resampled_sequences(coefficients):
  rng = np.random.default_rng(2)
  c = np.array(coefficients)
  sums, length, _, mask = _clustered(rng, 0.3 * np.arange(len(c)), 200)
  # Weights differ between the ratios, as those of FVUs of two sites do.
  weights = length * rng.uniform(0.5, 2, (len(c), 1))
  weights = weights * rng.uniform(0.9, 1.1, weights.shape)
  found = combination(c, sums, weights)
  whole = lambda some: (
    c @ (sums[:, some].sum(axis=1) / weights[:, some].sum(axis=1))
  )
  assert found.mean == pytest.approx(whole(np.arange(200)), rel=1e-12)
  assert found.n == 200
  assert found.stderr == pytest.approx(_jackknife(whole, 200), rel=0.02)
  assert found.stderr == pytest.approx(_bootstrap(whole, 200, rng), rel=0.06)


def test_a_paired_difference_has_the_error_of_resampled_sequences():
  rng = np.random.default_rng(3)
  (a, b), length, *_ = _clustered(rng, [0.5, 0.2], 200)
  found = paired_difference(a, length, b, length)
  whole = lambda some: (a - b)[some].sum() / length[some].sum()
  assert found.mean == pytest.approx(whole(np.arange(200)), rel=1e-12)
  assert found.stderr == pytest.approx(_jackknife(whole, 200), rel=0.02)
  assert found.stderr == pytest.approx(_bootstrap(whole, 200, rng), rel=0.06)


def test_one_ratio_is_a_combination_and_nothing_differs_from_itself():
  rng = np.random.default_rng(4)
  (a,), length, *_ = _clustered(rng, [0.5])
  alone, one = ratio(a, length), combination([1.0], a[None], length[None])
  assert one.mean == pytest.approx(alone.mean, rel=1e-12)
  assert one.stderr == pytest.approx(alone.stderr, rel=1e-12)
  itself = paired_difference(a, length, a, length)
  assert (itself.mean, itself.n) == (0, 60)
  assert itself.stderr == pytest.approx(0, abs=1e-15)


def test_intervals_over_clustered_tokens_cover_as_often_as_they_say():
  """95 % intervals of a ratio and of a paired difference, 400 studies.

  Errors that take tokens as independent would cover far less often.
  """
  rng = np.random.default_rng(5)
  covered = dict.fromkeys(("ratio", "paired", "tokens"), 0)
  for _ in range(400):
    (a, b), length, values, mask = _clustered(rng, [0.5, 0.2])
    one = ratio(a, length)
    two = paired_difference(a, length, b, length)
    naive = values[0][mask].std(ddof=1) / np.sqrt(mask.sum())
    for key, mean, stderr, true in (
      ("ratio", one.mean, one.stderr, _truth(0.5)),
      ("paired", two.mean, two.stderr, 0.3),
      ("tokens", one.mean, naive, _truth(0.5)),
    ):
      covered[key] += abs(mean - true) < 1.96 * stderr
  share = {key: count / 400 for key, count in covered.items()}
  assert 0.91 < share["ratio"] < 0.98
  assert 0.91 < share["paired"] < 0.98
  assert share["tokens"] < 0.7


def test_pairing_is_far_tighter_where_sequences_share_their_difficulty():
  (a, b), length, *_ = _clustered(np.random.default_rng(6), [0.5, 0.2])
  paired = paired_difference(a, length, b, length)
  unpaired = np.hypot(ratio(a, length).stderr, ratio(b, length).stderr)
  assert paired.mean == pytest.approx(0.3, abs=4 * paired.stderr)
  assert paired.stderr < unpaired / 4
  # Pairing is by place: shuffled, nothing cancels.
  order = np.random.default_rng(7).permutation(len(b))
  shuffled = paired_difference(a, length, b[order], length[order])
  assert shuffled.mean == pytest.approx(paired.mean, rel=1e-9)
  assert shuffled.stderr == pytest.approx(unpaired, rel=0.3)


def test_combinations_leave_out_sequences_of_no_weight():
  a = np.array([[1.0, 2.0, 99.0], [4.0, 2.0, 99.0]])
  b = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
  found = combination([1, -1], a, b)
  assert found == combination([1, -1], a[:, :2], b[:, :2])
  assert (found.mean, found.n) == (pytest.approx(-0.5), 2)
  # One without weight in one ratio alone counts in the other.
  b[1, 2] = 1
  assert combination([1, -1], np.minimum(a, 9) * (b != 0), b).n == 3


def test_a_combination_over_one_sequence_has_no_standard_error():
  found = combination([2, 1], np.array([[3.0], [1.0]]), np.array([[2.0], [1]]))
  assert (found.mean, found.stderr, found.n) == (4.0, None, 1)
  one = np.array([3.0])
  assert paired_difference(one, 2 * one, one, one).stderr is None


@pytest.mark.parametrize(
  "shapes",
  [
    ((2,), (2, 5), (2, 4)),  # weights of other sequences
    ((3,), (2, 5), (2, 5)),  # a coefficient too many
    ((5,), (5,), (5,)),  # one ratio, not stacked
    ((), (2, 5), (2, 5)),
  ],
)
def test_shapes_that_do_not_fit_are_named(shapes):
  with pytest.raises(ValueError, match=r"expected \[K\], \[K, n\]"):
    combination(*map(np.ones, shapes))


def test_a_combination_with_a_ratio_of_no_weight_is_an_error():
  weights = np.array([[1.0, 1.0], [0.0, 0.0]])
  with pytest.raises(ValueError, match="no sequence has a token that counts"):
    combination([1, -1], np.ones((2, 2)), weights)
  with pytest.raises(ValueError, match="no sequence has a token that counts"):
    paired_difference(*np.zeros((4, 3)))
