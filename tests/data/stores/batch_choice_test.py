"""The batch that fits, of passes whose size is known."""

import pytest

from gemmascope_jax.data.stores import batch_choice
from gemmascope_jax.data.stores.footprint import Footprint

GIB = 2**30


def _measure(weights, per_token, asked):
  def measure(batch, window):
    asked.append((batch, window))
    return Footprint(
      model="gemma-2-27b",
      mesh={"data": 4, "model": 4},
      batch=batch,
      window=window,
      weights=int(weights * GIB),
      temporaries=int(per_token * batch * window * GIB),
      outputs=0,
      held=3,
      flops=1.0,
      moved=1.0,
      kept_whole={},
    )

  return measure


def _choose(weights=4.0, per_token=1 / 4096, ways=4, window=1024, limit=10.0):
  asked = []
  found, said = batch_choice.choose(
    _measure(weights, per_token, asked),
    ways=ways,
    window=window,
    limit=int(limit * GIB),
  )
  return found.batch, said, asked


def test_the_largest_that_fits_nine_tenths():
  # 4 GiB, and a quarter of one for each sequence: 8 + 4 but not 16.
  batch, said, asked = _choose(limit=6 / 0.9 + 0.01)
  assert batch == 8 and asked == [(4, 1024), (8, 1024), (16, 1024)]
  assert "8 sequences of 1024 tokens, which take 6.00 GiB of a device" in said
  assert "16 would take 8.00 GiB" in said and "gemma-2-27b on data 4" in said
  assert _choose(limit=6 / 0.9 - 0.01)[0] == 4


def test_not_more_than_is_useful():
  batch, said, _ = _choose(per_token=0.0, ways=2)
  assert batch * 1024 == 2 * 32_768
  assert "more than 32,768 tokens a device gain nothing" in said
  assert _choose(per_token=0.0, window=65_536)[0] == 4


@pytest.mark.parametrize(
  "changes, advice",
  [
    ({"weights": 9.5}, "The weights alone are too large: set mesh.model"),
    ({"per_token": 1 / 16}, "Shorter sequences do not help"),
  ],
)
def test_nothing_fits(changes, advice):
  with pytest.raises(batch_choice.TooLargeError, match=advice) as error:
    _choose(**changes)
  assert "gemma-2-27b does not fit" in str(error.value)
  assert "a device has 10.00 GiB, of which 90% may be used" in str(error.value)


def test_the_longest_sequence_that_fits_is_named():
  # 9 GiB may be used, 5 beside the weights: 5 * 512 / 4 tokens, so 512.
  with pytest.raises(batch_choice.TooLargeError, match="data.window=512"):
    _choose(per_token=1 / 512)


def test_the_limit():
  assert batch_choice.memory_limit(None, 1.5) == 3 * GIB // 2
  with pytest.raises(ValueError, match="set mesh.memory_gib, or harvest.batch"):
    batch_choice.memory_limit(None)
