import gc
import threading

import numpy as np
import pytest
from tiny_gemma import POLICY

from gemmascope_jax.data.streams import stream
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.data.streams.stream import StoreStream

SITE = "res.1"


SHUFFLES = (
  Shuffle(5, bucket_rows=300),
  Shuffle(5, "global", bucket_rows=256, block_rows=32),
)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_batches_are_the_rows(store, shuffle):
  source = StoreStream(store, SITE, 64, shuffle)
  every = store.read(SITE, 0, store.rows)
  for step in (0, 13, 14, 40):
    batch = source.batch(step)
    assert batch.dtype == np.float32 and batch.shape == (64, source.width)
    rows = source.order.row_numbers(step)
    np.testing.assert_array_equal(source.row_numbers(step), rows)
    np.testing.assert_array_equal(batch, every[rows])


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_iterate_from_any_step_equals_batches(store, shuffle):
  source = StoreStream(store, SITE, 64, shuffle)
  whole = source.iterate()
  uninterrupted = [next(whole) for _ in range(20)]
  whole.close()
  resumed = StoreStream(store, SITE, 64, shuffle).iterate(11)
  for step, batch in uninterrupted[11:]:
    resumed_step, resumed_batch = next(resumed)
    assert resumed_step == step
    np.testing.assert_array_equal(resumed_batch, batch)
    np.testing.assert_array_equal(batch, source.batch(step))
  resumed.close()


def test_iterate_ends(store):
  source = StoreStream(store, SITE, 64)
  assert [step for step, _ in source.iterate(3, 7)] == [3, 4, 5, 6]
  assert not list(source.iterate(7, 7))


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_see_parts_of_the_same_batches(store, shuffle, count):
  whole = StoreStream(store, SITE, 64, shuffle)
  size = 64 // count
  parts = [
    StoreStream(store, SITE, 64, shuffle).iterate(
      9, 24, part=slice(size * process, size * (process + 1))
    )
    for process in range(count)
  ]
  for step, batch in whole.iterate(9, 24):
    found = [next(part) for part in parts]
    assert {number for number, _ in found} == {step}
    np.testing.assert_array_equal(np.concatenate([p for _, p in found]), batch)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_owners_of_slices_make_up_the_batch(store, shuffle):
  whole = StoreStream(store, SITE, 64, shuffle)
  owners = [
    StoreStream(store, SITE, 64, shuffle, owned=owned)
    for owned in [(0, 128), (128, 640), (640, 900)]
  ]
  for step in range(20):
    for part in (slice(None), slice(10, 40)):
      first, last, _ = part.indices(64)
      batch = np.full((last - first, whole.width), np.nan, np.float32)
      for owner in owners:
        positions, rows = owner.stored(step, part)
        assert np.isnan(batch[positions - first]).all()
        batch[positions - first] = rows
        if shuffle.kind == "bucket" and owner is owners[1] and step == 0:
          assert len(positions) < last - first
      np.testing.assert_array_equal(batch, whole.batch(step, part))
  assert owners[0].fingerprint == whole.fingerprint


def test_a_batch_that_is_kept_is_not_overwritten(store):
  source = StoreStream(store, SITE, 64)
  kept = [batch for _, batch in source.iterate(0, 12)]
  views = [batch[3:5] for _, batch in source.iterate(12, 24)]
  for step in range(12):
    np.testing.assert_array_equal(kept[step], source.batch(step))
    np.testing.assert_array_equal(views[step], source.batch(12 + step)[3:5])


def test_only_the_needed_buckets_are_prepared(store):
  source = StoreStream(store, SITE, 64, Shuffle(0, bucket_rows=300))
  asked = []
  make = source._make_bucket
  source._make_bucket = lambda *key: asked.append(key) or make(*key)
  list(source.iterate(0, 4))  # rows 0..255, more than half of bucket 0
  assert asked == [(0, 0)]
  list(source.iterate(4, 5))
  assert asked == [(0, 0), (0, 1)]


def reading():
  return [t for t in threading.enumerate() if t.name.startswith("StoreStream")]


def test_reading_thread_ends(store):
  source = StoreStream(store, SITE, 64)
  closed, dropped = source.iterate(), source.iterate()
  next(closed), next(dropped)
  assert len(reading()) >= 2
  closed.close()
  del dropped
  gc.collect()
  assert not reading()


def test_reading_error_reaches_the_consumer(store):
  with pytest.raises(ValueError, match="step -1"):
    next(StoreStream(store, SITE, 64).iterate(-1))
  assert not reading()


def test_attributes(store):
  source: stream.ActivationStream = StoreStream(store, SITE, 64, Shuffle(5))
  every = store.read(SITE, 0, store.rows).astype(np.float64)
  np.testing.assert_allclose(source.mean, every.mean(axis=0), rtol=1e-12)
  square = (every**2).sum(axis=1).mean()
  assert source.mean_square_norm == pytest.approx(square, rel=1e-12)
  assert (source.rows, source.width, source.site) == (900, 12, SITE)
  assert source.policy == POLICY
  prints = {
    StoreStream(store, SITE, size, shuffle).fingerprint
    for size, shuffle in [
      (64, Shuffle(5)),
      (64, Shuffle(6)),
      (65, Shuffle(5)),
      (64, Shuffle(5, bucket_rows=300)),
      (64, Shuffle(5, "global")),
    ]
  }
  assert len(prints) == 5
  assert source.fingerprint in prints


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(site="res.2"), "site res.2: .* holds res.1, att.0, mlp.1"),
    (dict(batch_size=901), r"batch_size 901: expected 1\.\.900"),
    (dict(batch_size=0), "batch_size 0"),
  ],
)
def test_errors(store, arguments, message):
  with pytest.raises(ValueError, match=message):
    StoreStream(store, **{"site": SITE, "batch_size": 64, **arguments})
