"""The client, against servers in this process; oracle: the store's stream."""

import itertools
import json
import shutil
import threading
import time

import numpy as np
import pyarrow.flight as flight
import pytest

from gemmascope_jax.data.serving import client, connection, protocol
from gemmascope_jax.data.serving.client import ServerStream
from gemmascope_jax.data.serving.server import StoreServer
from gemmascope_jax.data.stores.shards import CorruptStoreError
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_plan import StoreMismatchError, StorePlan
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.data.streams.stream import StoreStream

SITE, B = "res.1", 70
SHUFFLES = [
  Shuffle(seed=3, bucket_rows=200),
  Shuffle(seed=3, kind="global", bucket_rows=200, block_rows=20),
]


def addresses(servers):
  return ",".join(server.address for server in servers)


def first(stream, count, **options):
  with_end = stream.iterate(**options)
  found = list(itertools.islice(with_end, count))
  with_end.close()
  return found


def require_same(found, expected):
  assert len(found) == len(expected)
  for (step, rows), (other, wanted) in zip(found, expected, strict=True):
    assert step == other and rows.dtype == np.float32
    np.testing.assert_array_equal(rows, wanted)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("shuffle", SHUFFLES, ids=["bucket", "global"])
def test_batches_are_those_of_the_store(store, serve, parts, shuffle):
  servers = [serve(part, parts) for part in range(parts)]
  expected = StoreStream(store, SITE, B, shuffle)
  remote = ServerStream(addresses(servers), SITE, B, shuffle)
  require_same(first(remote, 40), first(expected, 40))
  require_same(first(remote, 5, start=17), first(expected, 5, start=17))
  np.testing.assert_array_equal(remote.batch(29), expected.batch(29))
  part = slice(13, 40)
  require_same(first(remote, 30, part=part), first(expected, 30, part=part))
  np.testing.assert_array_equal(remote.batch(3, part), expected.batch(3)[part])
  assert len(list(remote.iterate(5, 9))) == 4
  assert list(remote.iterate(5, 5)) == []


def test_attributes_are_those_of_the_store(store, serve):
  expected = StoreStream(store, SITE, B, SHUFFLES[1])
  remote = ServerStream(serve().address, SITE, B, SHUFFLES[1])
  for name in (
    *("site", "width", "batch_size", "rows", "mean_square_norm"),
    *("policy", "fingerprint", "model", "provenance"),
  ):
    assert getattr(remote, name) == getattr(expected, name), name
  np.testing.assert_array_equal(remote.mean, expected.mean)
  assert remote.waits_for == "servers"


def test_threads_end_and_servers_are_told(serve):
  server = serve()
  iterator = ServerStream(server.address, SITE, B, trainer="me").iterate()
  next(iterator)
  assert [t["name"] for t in server.stats()["trainers"]] == ["me"]
  iterator.close()
  assert not [t for t in threading.enumerate() if t.name == "ServerStream"]
  assert server.stats()["trainers"] == []


def test_two_trainers_one_reading(store, serve):
  server = serve()
  streams = [ServerStream(server.address, SITE, B) for _ in range(2)]
  iterators = [stream.iterate(0, 30) for stream in streams]
  for _ in range(30):
    (_, one), (_, two) = [next(iterator) for iterator in iterators]
    np.testing.assert_array_equal(one, two)
  stats = server.stats()
  for iterator in iterators:
    iterator.close()
  assert stats["rows_served"] == 2 * 30 * B
  assert stats["rows_read"] == 30 * B
  assert stats["bytes_read"] == stats["rows_read"] * 12 * 4
  assert stats["buffer_filled"] > 0
  json.dumps(stats)


def test_processes_of_one_trainer_share_a_reading(store, serve):
  server = serve()
  stream = ServerStream(server.address, SITE, 64, trainer="many")
  iterators = [
    stream.iterate(0, 20, part=slice(start, start + 16))
    for start in range(0, 64, 16)
  ]
  expected = StoreStream(store, SITE, 64)
  for step in range(20):
    rows = np.concatenate([next(iterator)[1] for iterator in iterators])
    np.testing.assert_array_equal(rows, expected.batch(step))
  stats = server.stats()
  for iterator in iterators:
    iterator.close()
  assert stats["rows_read"] == stats["rows_served"] == 20 * 64


def test_token(serve, monkeypatch):
  server = serve(token="secret")
  start = time.monotonic()
  for wrong in ("Secret", None):
    with pytest.raises(PermissionError, match="refused the token"):
      ServerStream(server.address, SITE, B, token=wrong)
  assert time.monotonic() - start < 5
  assert ServerStream(server.address, SITE, B, token="secret").batch(0).any()
  monkeypatch.setenv("GEMMASCOPE_SERVER_TOKEN", "secret")
  assert ServerStream(server.address, SITE, B).batch(0).any()
  open_to_all = serve()
  assert ServerStream(open_to_all.address, SITE, B).batch(0).any()


def test_servers_that_do_not_belong_together(serve, store, tmp_path):
  parts = [serve(part, 3) for part in range(3)]
  whole = serve()
  with pytest.raises(ValueError, match=r"no server owns rows 256\.\.639: .*"):
    ServerStream(addresses([parts[0], parts[2]]), SITE, B)
  with pytest.raises(ValueError, match=r"no server owns rows 640\.\.899"):
    ServerStream(addresses(parts[:2]), SITE, B)
  with pytest.raises(ValueError, match=r"two servers own rows 0\.\.255"):
    ServerStream(addresses([*parts, parts[0]]), SITE, B)
  with pytest.raises(ValueError, match="two servers own"):
    ServerStream(addresses([whole, parts[1]]), SITE, B)
  other = shutil.copytree(store.root, tmp_path / "other")
  manifest = json.loads((other / "manifest.json").read_text())
  manifest["tokens_sha256"] = "f" * 64
  plan = StorePlan.from_dict(manifest, other)
  manifest["fingerprint"] = plan.fingerprint
  (other / "manifest.json").write_text(json.dumps(manifest))
  foreign = serve(2, 3, store=Store.open(other))
  with pytest.raises(StoreMismatchError, match="give the addresses of one"):
    ServerStream(addresses([*parts[:2], foreign]), SITE, B)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(site="res.9"), "site res.9: .* serves res.1, att.0, mlp.1"),
    (dict(batch_size=901), r"batch_size 901: expected 1\.\.900"),
    (dict(addresses=" , "), "no servers: expected grpc://"),
    (dict(addresses="http://a:1"), "server 'http://a:1': expected grpc://"),
    (dict(addresses="grpc://a"), "server 'grpc://a': expected grpc://"),
  ],
)
def test_errors(serve, arguments, message):
  arguments = {
    "addresses": serve().address,
    "site": SITE,
    "batch_size": B,
    **arguments,
  }
  with pytest.raises(ValueError, match=message):
    ServerStream(**arguments)


def test_errors_of_iterate(serve):
  stream = ServerStream(serve().address, SITE, B)
  with pytest.raises(ValueError, match="step -1"):
    next(stream.iterate(-1))
  with pytest.raises(ValueError, match="consecutive"):
    stream.batch(0, slice(0, 10, 2))
  assert stream.batch(0, slice(5, 5)).shape == (0, 12)


def test_a_batch_larger_than_the_buffer_is_refused(serve):
  server = serve(buffer_bytes=5000)
  with pytest.raises(ValueError, match="start it with more --buffer_gib"):
    ServerStream(server.address, SITE, B).batch(0)


def test_a_name_is_one_trainers(serve):
  server = serve()
  one = ServerStream(server.address, SITE, B, trainer="same").iterate()
  next(one)
  two = ServerStream(server.address, SITE, B, trainer="same").iterate()
  next(two)
  with pytest.raises(ValueError, match="another trainer connected as same"):
    list(itertools.islice(one, 1000))
  next(two)
  two.close()


def test_no_server_ever(free_port):
  start = time.monotonic()
  with pytest.raises(ConnectionError, match="is away for 1 s .*same port"):
    ServerStream(f"grpc://127.0.0.1:{free_port}", SITE, B, timeout_s=1.0)
  assert 0.9 < time.monotonic() - start < 5


def test_a_server_that_stops_is_waited_for(store, serve, free_port):
  """Stopped politely, and back on its port: not a row is lost or doubled."""
  expected = StoreStream(store, SITE, B)
  server = serve(port=free_port)
  stream = ServerStream(server.address, SITE, B, timeout_s=20)
  found = []
  for step, rows in stream.iterate(0, 200):
    found.append((step, rows.copy()))
    if step in (50, 120):
      server.close()
      server = serve(port=free_port)
  require_same(found, list(expected.iterate(0, 200)))


def test_a_server_that_does_not_come_back(serve):
  server = serve()
  stream = ServerStream(server.address, SITE, B, timeout_s=1.0)
  iterator = stream.iterate()
  next(iterator)
  server.close()
  with pytest.raises(ConnectionError, match=f"{server.address} is away for"):
    list(itertools.islice(iterator, 1000))


def test_a_server_that_comes_back_with_other_rows(store, serve, free_port):
  server = serve(port=free_port)
  iterator = ServerStream(server.address, SITE, B).iterate()
  next(iterator)
  server.close()
  serve(0, 2, port=free_port)
  with pytest.raises(StoreMismatchError, match=r"serves rows 0\.\.511, not"):
    list(itertools.islice(iterator, 1000))


def test_a_damaged_shard_is_the_servers_error(store, serve, tmp_path):
  copy = shutil.copytree(store.root, tmp_path / "copy")
  path = copy / SITE / "00003.npy"
  raw = bytearray(path.read_bytes())
  raw[-5] ^= 1
  path.write_bytes(raw)
  stream = ServerStream(serve(store=Store.open(copy)).address, SITE, B)
  start = time.monotonic()
  with pytest.raises(CorruptStoreError, match=r"00003\.npy: row 127"):
    list(itertools.islice(stream.iterate(), 30))
  path.write_bytes(raw[:-100])
  stream = ServerStream(serve(store=Store.open(copy)).address, SITE, B)
  with pytest.raises(CorruptStoreError, match=r"00003\.npy"):
    list(itertools.islice(stream.iterate(), 30))
  assert time.monotonic() - start < 10


def test_versions_that_differ(serve, monkeypatch):
  server = serve()
  stream = ServerStream(server.address, SITE, B)
  monkeypatch.setattr(client.protocol, "FORMAT", 99)
  old = json.dumps({**server.describe(), "format": 1})
  with pytest.raises(ValueError, match="speaks version 1 .* this side"):
    protocol.require_format(json.loads(old), "server x")
  monkeypatch.undo()
  ticket = json.loads(
    stream._ticket((0, 900), (0, B), 0, None, None).to_bytes()
  )
  connection = flight.FlightClient(server.address)
  for change, message in [
    ({"format": 2}, "the client speaks version 2"),
    ({"stream": "0" * 16}, "run the same version"),
    ({"store": "0" * 16}, "serves store"),
    ({"part": [0, B + 1]}, "expected rows within"),
    ({"colour": 1}, "not a ticket"),
  ]:
    data = json.dumps({**ticket, **change}).encode()
    with pytest.raises(flight.FlightServerError, match=message):
      connection.do_get(flight.Ticket(data)).read_chunk()
  with pytest.raises(flight.FlightServerError, match="not JSON"):
    connection.do_get(flight.Ticket(b"{")).read_chunk()
  with pytest.raises(flight.FlightServerError, match="see list_actions"):
    list(connection.do_action("dance"))


def test_a_slow_reader_neither_stops_others_nor_fills_memory(serve):
  server = serve(patience=0.5, buffer_bytes=40_000)  # a dozen batches
  slow = ServerStream(server.address, SITE, B).iterate()
  next(slow)
  fast = ServerStream(server.address, SITE, B).iterate()
  start, filled = time.monotonic(), 0
  for _ in range(600):
    next(fast)
    filled = max(filled, server.stats()["buffer_filled"])
  assert time.monotonic() - start < 20
  assert filled <= 40_000 + 4 * B * 12 * 4
  fast.close()
  slow.close()


def test_a_stream_that_nobody_reads_is_let_go(serve, wide_store, monkeypatch):
  monkeypatch.setattr("gemmascope_jax.data.serving.server._TIDY", 0.3)
  server = serve(store=wide_store, patience=0.1, buffer_bytes=20 << 20)
  expected = StoreStream(wide_store, "res.0", 128).iterate(0, 60)
  found = ServerStream(server.address, "res.0", 128).iterate(0, 60)
  for (step, rows), (_, wanted) in zip(found, expected, strict=True):
    np.testing.assert_array_equal(rows, wanted)
    if step == 5:  # it evaluates, say
      deadline = time.monotonic() + 10
      while server.stats()["buffer_filled"] and time.monotonic() < deadline:
        time.sleep(0.05)
      assert server.stats()["trainers"] == []
      assert server.stats()["rows_served"] > 0  # still counted
  assert step == 59


@pytest.mark.parametrize("seed", range(3))
def test_positions_survive_any_message_size(serve, store, monkeypatch, seed):
  size = int(np.random.default_rng(seed).integers(40, 400))
  monkeypatch.setattr(protocol, "MESSAGE_BYTES", size)
  servers = [serve(part, 2) for part in range(2)]
  expected = StoreStream(store, SITE, B, SHUFFLES[1])
  remote = ServerStream(addresses(servers), SITE, B, SHUFFLES[1])
  require_same(first(remote, 10), first(expected, 10))


def test_a_server_that_never_answers(store, monkeypatch):
  thawed = threading.Event()

  class Frozen(StoreServer):
    def do_get(self, context, ticket):
      thawed.wait(60)
      return super().do_get(context, ticket)

  monkeypatch.setattr(connection, "SILENCE", 1)
  server = Frozen(store, buffer_bytes=1 << 20)
  stream = ServerStream(server.address, SITE, B, timeout_s=2)
  try:
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="is away for 2 s .it answered"):
      stream.batch(0)
    assert time.monotonic() - start < 20
  finally:
    thawed.set()
    server.close()


def test_iterators_of_one_stream_side_by_side(store, serve):
  stream = ServerStream(serve().address, SITE, B, trainer="me")
  expected = StoreStream(store, SITE, B)
  one, two = stream.iterate(3), stream.iterate(5)
  for number in range(4):
    for iterator, step in ((one, 3 + number), (two, 5 + number)):
      found, rows = next(iterator)
      assert found == step
      np.testing.assert_array_equal(rows, expected.batch(step))
  one.close(), two.close()
