import itertools

import numpy as np
import pytest
import tiny_gemma
from tiny_gemma import POLICY, SITES

from gemmascope_jax import parallel
from gemmascope_jax.data.stores.store_plan import StoreMismatchError
from gemmascope_jax.data.streams.live import LiveRows
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.data.streams.stream import StoreStream


def live(lm, folder, **changes):
  options = dict(rows=900, batch=4, statistics_rows=900) | changes
  return LiveRows(lm, tiny_gemma.windows(), SITES, POLICY, folder, **options)


def test_rows_are_those_of_a_store(lm, store, tmp_path):
  rows = live(lm, tmp_path)
  assert rows.sites == store.sites and rows.rows == store.rows
  random = np.random.default_rng(0).permutation(900)[:200]
  for site in SITES:
    np.testing.assert_array_equal(
      rows.read(site, 100, 333), store.read(site, 100, 333)
    )
    np.testing.assert_array_equal(
      rows.gather(site, random), store.gather(site, random)
    )
  np.testing.assert_array_equal(rows.index(5, 600), store.index(5, 600))
  np.testing.assert_array_equal(rows.tokens, store.tokens)
  np.testing.assert_array_equal(rows.keys, store.keys)


def test_batches_are_those_of_a_store(lm, store, tmp_path):
  shuffle = Shuffle(2, bucket_rows=256)
  streams = [
    StoreStream(source, "res.1", 64, shuffle)
    for source in (live(lm, tmp_path), store)
  ]
  for (step, ours), (_, theirs) in zip(
    streams[0].iterate(3, 30), streams[1].iterate(3, 30), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs, err_msg=str(step))
  assert streams[0].fingerprint != streams[1].fingerprint  # other statistics
  assert streams[0].waits_for == "language model"


def test_statistics_of_all_rows_are_those_of_a_store(lm, store, tmp_path):
  for site in SITES:
    mean, square = live(lm, tmp_path).statistics(site)
    expected = store.statistics(site)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-10, atol=1e-12)
    assert square == pytest.approx(expected[1], rel=1e-12)


def test_statistics_are_measured_once_and_of_a_sample(lm, store, tmp_path):
  rows = live(lm, tmp_path, statistics_rows=300)
  found = rows.statistics("res.1")
  assert found[1] == pytest.approx(store.statistics("res.1")[1], rel=0.2)
  again = live(lm, tmp_path, statistics_rows=300)
  again._measure = None
  np.testing.assert_array_equal(again.statistics("res.1")[0], found[0])
  assert again.statistics("res.1")[1] == found[1]
  assert rows.fingerprint == again.fingerprint
  assert rows.fingerprint != live(lm, tmp_path).fingerprint


def test_half_precision_is_that_of_a_store(lm, tmp_path):
  half = live(lm, tmp_path, dtype="bfloat16")
  whole = live(lm, tmp_path)
  stored = half.hold("res.1", np.arange(10, 20)).take(np.arange(10))
  assert stored.dtype == np.uint16
  np.testing.assert_allclose(
    half.read("res.1", 0, 900), whole.read("res.1", 0, 900), rtol=2**-8
  )


def test_on_a_mesh(lm, store, tmp_path):
  mesh = parallel.make_mesh({"data": 4})
  rows = live(lm, tmp_path, mesh=mesh)
  np.testing.assert_allclose(
    rows.read("res.1", 0, 300), store.read("res.1", 0, 300), atol=1e-5
  )
  with pytest.raises(ValueError, match="batch 4: the mesh splits it 8 ways"):
    live(lm, tmp_path, mesh=parallel.make_mesh({"data": 8}))


def test_only_needed_batches_are_computed(lm, tmp_path):
  rows = live(lm, tmp_path)
  dispatched = []
  dispatch = rows._forward.dispatch
  rows._forward.dispatch = lambda f: dispatched.append(f) or dispatch(f)
  rows.read("res.1", 100, 300)
  starts = rows._forward.row_starts
  assert all(b - a == 4 for a, b in itertools.pairwise(dispatched))
  assert starts[dispatched[0]] <= 100 < starts[dispatched[1]]
  assert starts[dispatched[-1]] < 300


def test_errors(lm, tmp_path):
  rows = live(lm, tmp_path)
  with pytest.raises(ValueError, match=r"rows 5\.\.900: .* has rows 0\.\.899"):
    rows.gather("res.1", np.array([5, 900]))
  with pytest.raises(ValueError, match="site res.2: .* res.1, att.0, mlp.1"):
    rows.read("res.2", 0, 2)
  with pytest.raises(ValueError, match="statistics_rows 0"):
    live(lm, tmp_path, statistics_rows=0)
  with pytest.raises(StoreMismatchError, match="tiny-1 was given"):
    rows.require_model(tiny_gemma.lm(seed=1))
