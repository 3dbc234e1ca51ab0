"""Ratios and standard errors: closed forms, and coverage by simulation."""

import numpy as np
import pytest

from gemmascope_jax.studies.estimate import ratio


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
