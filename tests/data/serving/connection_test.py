"""A line that is cancelled at any moment, against a server that is slow."""

import threading
import time

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from gemmascope_jax.data.serving import connection

SCHEMA = pa.schema([("x", pa.int8())])


class _Server(flight.FlightServerBase):
  """Answers a ticket late, and then without end."""

  def __init__(self, seconds):
    super().__init__("grpc://127.0.0.1:0")
    self.address = f"grpc://127.0.0.1:{self.port}"
    self.ended, self.closing = 0, False
    self._seconds = seconds

  def do_action(self, context, action):
    return [b"{}"]

  def do_get(self, context, ticket):
    time.sleep(self._seconds)
    return flight.GeneratorStream(SCHEMA, self._without_end())

  def _without_end(self):
    try:
      while not self.closing:
        yield pa.record_batch([pa.array([1], pa.int8())], schema=SCHEMA)
    finally:
      self.ended += 1


class _Ticket:
  def to_bytes(self):
    return b"any"


@pytest.fixture
def serve():
  servers = []

  def start(seconds):
    servers.append(_Server(seconds))
    return servers[-1]

  yield start
  for server in servers:
    server.closing = True  # or it would wait for those who read
    server.shutdown()


def _threads():
  return [t for t in threading.enumerate() if t.name == "do_get"]


def _wait(condition):
  until = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.02)


def test_cancelled_while_it_begins(serve):
  # Closing Arrow's client while it is called would end this process.
  server = serve(0)
  for _ in range(300):
    line = connection.Connection(server.address)
    line.cancel()
    with pytest.raises(connection.LostConnectionError, match="cancelled"):
      next(line.read(_Ticket()))
  _wait(lambda: not _threads())


def test_cancelled_while_the_server_makes_one_wait(serve):
  server = serve(1.0)
  lines = [connection.Connection(server.address) for _ in range(4)]
  said = []

  def read(line):
    try:
      next(line.read(_Ticket()))
    except connection.LostConnectionError as error:
      said.append(str(error))

  threads = [threading.Thread(target=read, args=(line,)) for line in lines]
  for thread in threads:
    thread.start()
  time.sleep(0.3)
  for line in lines:
    line.cancel()
  for thread in threads:
    thread.join()
  assert said == ["cancelled"] * 4
  assert _threads()  # they still wait for the server
  _wait(lambda: not _threads())
  _wait(lambda: server.ended == 4)  # nothing is left running there


def test_silence_is_a_lost_connection(serve, monkeypatch):
  monkeypatch.setattr(connection, "SILENCE", 0.5)
  line = connection.Connection(serve(2.0).address)
  with pytest.raises(connection.LostConnectionError, match="nothing for 0 s"):
    next(line.read(_Ticket()))
  _wait(lambda: not _threads())
