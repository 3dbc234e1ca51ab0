import gc
import threading

import numpy as np
import pytest
from tiny_gemma import POLICY

from gemmascope_jax.data import stream
from gemmascope_jax.data.stream import StoreStream

SITE = "res.1"


def rows_of(source, steps):
  return np.concatenate([source.row_numbers(step) for step in steps])


@pytest.mark.parametrize("bucket", [64, 250, 900, 1 << 20])
def test_every_row_once_an_epoch(store, bucket):
  source = StoreStream(store, SITE, 60, seed=3, bucket_rows=bucket)
  for epoch in range(2):  # 900 rows are 15 batches
    rows = rows_of(source, range(15 * epoch, 15 * epoch + 15))
    assert sorted(rows) == list(range(900))
    assert list(rows) != sorted(rows)


def test_rows_stay_in_their_bucket_and_batches_join_up(store):
  source = StoreStream(store, SITE, 70, seed=1, bucket_rows=100)
  rows = rows_of(source, range(30))
  for start in range(0, 900, 100):
    assert {row // 100 for row in rows[start : start + 100]} == {start // 100}
  other = StoreStream(store, SITE, 7, seed=1, bucket_rows=100)
  assert (rows_of(other, range(300)) == rows).all()


def test_epochs_buckets_and_seeds_differ(store):
  source = StoreStream(store, SITE, 100, seed=1, bucket_rows=100)
  orders = {tuple(source.row_numbers(step) % 100) for step in range(18)}
  assert len(orders) == 18
  other = StoreStream(store, SITE, 100, seed=2, bucket_rows=100)
  assert tuple(other.row_numbers(0)) not in orders


def test_order_is_stable_across_versions(store):
  # Golden: a run that is resumed after an update must see the same batches.
  source = StoreStream(store, SITE, 5, seed=7)
  assert source.row_numbers(0).tolist() == [887, 535, 753, 631, 201]


def test_batches_are_the_rows(store):
  source = StoreStream(store, SITE, 64, seed=5, bucket_rows=300)
  every = store.read(SITE, 0, store.rows)
  for step in (0, 13, 14, 40):
    batch = source.batch(step)
    assert batch.dtype == np.float32 and batch.shape == (64, source.width)
    np.testing.assert_array_equal(batch, every[source.row_numbers(step)])


def test_iterate_from_any_step_equals_batches(store):
  source = StoreStream(store, SITE, 64, seed=5, bucket_rows=300)
  whole = source.iterate()
  uninterrupted = [next(whole) for _ in range(20)]
  whole.close()
  resumed = StoreStream(store, SITE, 64, seed=5, bucket_rows=300).iterate(11)
  for step, batch in uninterrupted[11:]:
    resumed_step, resumed_batch = next(resumed)
    assert resumed_step == step
    np.testing.assert_array_equal(resumed_batch, batch)
    np.testing.assert_array_equal(batch, source.batch(step))
  resumed.close()


def reading():
  return [t for t in threading.enumerate() if t.name == "StoreStream"]


def test_reading_thread_ends(store):
  source = StoreStream(store, SITE, 64)
  closed, dropped = source.iterate(), source.iterate()
  next(closed), next(dropped)
  assert len(reading()) == 2
  closed.close()
  del dropped
  gc.collect()
  assert not reading()


def test_reading_error_reaches_the_consumer(store):
  with pytest.raises(ValueError, match="step -1"):
    next(StoreStream(store, SITE, 64).iterate(-1))
  assert not reading()


def test_attributes(store):
  source: stream.ActivationStream = StoreStream(store, SITE, 64, seed=5)
  every = store.read(SITE, 0, store.rows).astype(np.float64)
  np.testing.assert_allclose(source.mean, every.mean(axis=0), rtol=1e-12)
  square = (every**2).sum(axis=1).mean()
  assert source.mean_square_norm == pytest.approx(square, rel=1e-12)
  assert (source.rows, source.width, source.site) == (900, 12, SITE)
  assert source.policy == POLICY
  prints = {
    StoreStream(store, SITE, *numbers).fingerprint
    for numbers in [(64, 5), (64, 6), (65, 5), (64, 5, 300)]
  }
  assert len(prints) == 4
  assert source.fingerprint in prints


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(site="res.2"), "site res.2: .* holds res.1, att.0, mlp.1"),
    (dict(batch_size=901), r"batch_size 901: expected 1\.\.900"),
    (dict(batch_size=0), "batch_size 0"),
    (dict(bucket_rows=0), "bucket_rows 0"),
    (dict(seed=-1), "seed -1"),
  ],
)
def test_errors(store, arguments, message):
  with pytest.raises(ValueError, match=message):
    StoreStream(store, **{"site": SITE, "batch_size": 64, **arguments})
