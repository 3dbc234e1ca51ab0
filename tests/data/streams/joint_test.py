"""Several sites side by side are what they are one by one, from anywhere."""

import threading

import jax
import numpy as np
import pytest
import tiny_gemma
from jax.sharding import PartitionSpec
from tiny_gemma import POLICY, SITES

from gemmascope_jax import parallel
from gemmascope_jax.data.serving.client import ServerStream
from gemmascope_jax.data.serving.server import StoreServer, owned_rows
from gemmascope_jax.data.stores.harvest import harvest
from gemmascope_jax.data.stores.store_plan import StoreMismatchError
from gemmascope_jax.data.streams import feed, stream
from gemmascope_jax.data.streams.joint import JointStream
from gemmascope_jax.data.streams.live import LiveRows
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.data.streams.stream import StoreStream

B = 64
SHUFFLE = Shuffle(5, bucket_rows=300)
WIDTHS = (12, 16, 12)


def _parts(source, sites=SITES, shuffle=SHUFFLE, batch_size=B):
  return [StoreStream(source, site, batch_size, shuffle) for site in sites]


@pytest.fixture
def live(lm, tmp_path):
  return LiveRows(
    lm, tiny_gemma.windows(), SITES, POLICY, tmp_path, rows=900, batch=4
  )


@pytest.fixture
def servers(store):
  started = [
    StoreServer(store, owned=owned_rows(store.plan, part, 2))
    for part in range(2)
  ]
  yield ",".join(server.address for server in started)
  for server in started:
    server.close()


def test_a_batch_is_its_parts_side_by_side(store):
  parts = _parts(store)
  joint = JointStream(parts)
  for step in (0, 13, 14, 40):
    batch = joint.batch(step)
    assert batch.dtype == np.float32 and batch.shape == (B, sum(WIDTHS))
    expected = np.hstack([part.batch(step) for part in parts])
    np.testing.assert_array_equal(batch, expected)
    some = joint.batch(step, slice(16, 48))
    np.testing.assert_array_equal(some, expected[16:48])


def test_store_servers_and_live_model_give_the_same_bits(store, servers, live):
  expected = dict(JointStream(_parts(store)).iterate(3, 30))
  served = [ServerStream(servers, site, B, SHUFFLE) for site in SITES]
  for joint in (JointStream(served), JointStream(_parts(live))):
    found = dict(joint.iterate(3, 30))
    assert list(found) == list(range(3, 30))
    for step in found:
      np.testing.assert_array_equal(found[step], expected[step])
  assert (
    JointStream(served).fingerprint == JointStream(_parts(store)).fingerprint
  )
  assert joint.waits_for == "language model"


def test_one_pass_of_a_live_model_serves_all_sites(live):
  joint = JointStream(_parts(live))  # measures C
  dispatched = []
  dispatch = live._forward.dispatch
  live._forward.dispatch = lambda f: dispatched.append(f) or dispatch(f)
  list(joint.iterate(0, 14))  # one epoch
  assert sorted(dispatched) == list(range(0, live.plan.windows, 4))
  assert not live._passes


def test_a_pass_that_fails_is_tried_again(live):
  compute, rows = live._compute, np.arange(10)

  def fail(sites, rows):
    raise FloatingPointError("NaN")

  live._compute = fail
  with pytest.raises(FloatingPointError):
    live.hold("res.1", rows)
  live._compute = compute
  held = live.hold("mlp.1", rows).take(rows)
  np.testing.assert_array_equal(held, live.read("mlp.1", 0, 10))


def test_rows_nobody_takes_are_let_go(live):
  for start in range(0, 80, 10):
    live.hold("res.1", np.arange(start, start + 10))
  assert len(live._passes) == 2


def test_attributes(store):
  parts = _parts(store)
  joint: stream.ActivationStream = JointStream(parts)
  assert (joint.sites, joint.widths, joint.width) == (SITES, WIDTHS, 40)
  assert (joint.site, joint.target_site) == ("res.1+att.0+mlp.1", None)
  every = np.hstack([store.read(site, 0, 900) for site in SITES])
  every = every.astype(np.float64)
  np.testing.assert_allclose(joint.mean, every.mean(axis=0), rtol=1e-12)
  square = (every**2).sum(axis=1).mean()
  assert joint.mean_square_norm == pytest.approx(square, rel=1e-12)
  for mean, norm, part in zip(
    joint.means, joint.mean_square_norms, parts, strict=True
  ):
    np.testing.assert_array_equal(mean, part.mean)
    assert norm == part.mean_square_norm
  for name in ("rows", "batch_size", "shuffle", "policy", "model"):
    assert getattr(joint, name) == getattr(parts[0], name)
  assert joint.provenance == parts[0].provenance


def test_a_target_stands_last_and_makes_another_stream(store):
  first, second, target = _parts(store)
  joint = JointStream([first], target)
  assert (joint.site, joint.target_site) == ("res.1", "mlp.1")
  assert joint.sites == ("res.1", "mlp.1")
  prints = {
    JointStream(streams, last).fingerprint
    for streams, last in [
      ([first], target),
      ([first, target], None),
      ([target, first], None),
      ([second], target),
      (_parts(store, SITES[::2], Shuffle(6)), None),
    ]
  }
  assert len(prints) == 5 and joint.fingerprint in prints


def test_the_threads_end_with_the_iterator(store):
  iterator = JointStream(_parts(store)).iterate()
  next(iterator)
  iterator.close()
  names = [thread.name for thread in threading.enumerate()]
  assert not [name for name in names if name.startswith("StoreStream")]


def test_a_batch_that_is_kept_is_not_overwritten(store):
  joint = JointStream(_parts(store))
  kept = dict(joint.iterate(0, 12))
  for step, batch in kept.items():
    np.testing.assert_array_equal(batch, joint.batch(step))


def test_the_feed_splits_rows_over_devices(store):
  joint = JointStream(_parts(store))
  mesh = parallel.make_mesh({"data": 4})
  for step, batch in feed.Feed(joint, mesh).iterate(2, 6):
    assert isinstance(batch, jax.Array)
    assert batch.sharding.spec == PartitionSpec("data")
    np.testing.assert_array_equal(batch, joint.batch(step))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"shuffle": Shuffle(6)}, r"its shuffle.seed is 6, not 5"),
    ({"batch_size": 32}, "its batch_size is 32, not 64"),
  ],
)
def test_parts_in_another_order_are_refused(store, changes, says):
  options = {"shuffle": Shuffle(5)} | changes
  parts = _parts(store, ("res.1",), Shuffle(5))
  other = _parts(store, ("mlp.1",), **options)
  with pytest.raises(
    StoreMismatchError, match=f"rows of mlp.1 are not those of res.1: .*{says}"
  ):
    JointStream(parts + other)


def test_parts_of_another_model_are_refused(store, tmp_path):
  other = harvest(
    tiny_gemma.lm(seed=1),
    tiny_gemma.windows(),
    ("mlp.1",),
    tmp_path / "other",
    POLICY,
    **tiny_gemma.OPTIONS,
  )
  parts = _parts(store, ("res.1",)) + _parts(other, ("mlp.1",))
  with pytest.raises(StoreMismatchError, match="data.weights_hash is hash-1"):
    JointStream(parts)


@pytest.mark.parametrize("sites", [(), ("res.1",), ("res.1", "res.1")])
def test_fewer_than_two_sites_are_refused(store, sites):
  with pytest.raises(ValueError, match="expected at least two, each once"):
    JointStream(_parts(store, sites))


def test_a_target_of_several_sites_is_refused(store):
  *inputs, target = _parts(store)
  with pytest.raises(ValueError, match="target mlp.1 of sites res.1, att.0"):
    JointStream(inputs, target)
