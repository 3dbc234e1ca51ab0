"""Readings then and now: planted differences, and text drawn again."""

import numpy as np

from gemmascope_jax.studies import agreement
from gemmascope_jax.studies.reconstruction import Reading


def _reading(rng, l0=20.0, fvu=0.1, sequences=40):
  count = rng.integers(80, 120, sequences).astype(float)
  level = rng.normal(1, 0.2, sequences)
  variance = count * rng.normal(50, 5, sequences)
  return Reading(
    count=count,
    active=count * l0 * level,
    squared_error=variance * fvu * level,
    variance=variance,
    only=np.zeros(sequences),
    mean=np.zeros(3),
    silent=np.float64(0),
    latents=np.float64(10),
  )


def _times(reading, name, factor):
  return Reading(**vars(reading) | {name: getattr(reading, name) * factor})


def test_the_same_sequences_may_differ_by_rounding_only():
  reading = _reading(np.random.default_rng(0))
  where = np.arange(40)
  for name, metric in (("active", 0), ("squared_error", 1)):
    for factor, holds in ((1 + 5e-4, True), (1 + 2e-3, False), (0.5, False)):
      now = _times(reading, name, factor)
      found = agreement.compare(reading, now, where, "float32")
      assert found[metric].holds == holds and found[1 - metric].holds
      # Far below what sampling alone would let through.
      alone = agreement.compare(reading, now, None, "float32")[metric]
      assert alone.holds or factor == 0.5


def test_other_text_may_differ_by_its_standard_error():
  rng = np.random.default_rng(1)
  draws = [
    agreement.compare(_reading(rng), _reading(rng), None, "float32")
    for _ in range(300)
  ]
  assert all(each.holds for pair in draws for each in pair)
  # The error is that of the difference: one in three is beyond one of them.
  beyond = np.mean(
    [
      abs(each.difference.mean) > each.difference.stderr
      for pair in draws
      for each in pair
    ]
  )
  assert 0.25 < beyond < 0.4
  worse = _reading(rng, l0=30.0)
  l0, fvu = agreement.compare(_reading(rng), worse, None, "float32")
  assert not l0.holds and fvu.holds and "standard errors" in str(l0)


def test_an_l0_without_error_may_differ_by_rounding():
  one = _reading(np.random.default_rng(3))
  fixed = lambda l0: Reading(**vars(one) | {"active": one.count * l0})
  for l0, holds in ((24.0, True), (24.01, True), (24.1, False)):
    found, _ = agreement.compare(fixed(24.0), fixed(l0), None, "float32")
    assert found.holds == holds


def test_sequences_are_known_by_their_tokens():
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, 9, (6, 8)).astype(np.int32)
  keys = agreement.keys(tokens)
  assert agreement.shared(keys, agreement.keys(tokens[::-1])).tolist() == [
    *range(5, -1, -1)
  ]
  other = tokens.copy()
  other[2, 3] += 1
  assert agreement.shared(keys, agreement.keys(other)) is None
  assert agreement.keys(tokens.astype(np.int64)) == keys
