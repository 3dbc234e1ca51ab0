"""The binary: real processes that are killed, and what people see."""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gemmascope_jax.data.serving import server, status
from gemmascope_jax.data.serving.client import ServerStream
from gemmascope_jax.data.serving.connection import Connection
from gemmascope_jax.data.streams.stream import StoreStream

SITE, B = "res.1", 70
SERVE = [sys.executable, "-m", "experiments.serve"]


def address(process):
  """Of a server process, once it serves."""
  text = ""
  while line := process.stdout.readline():
    text += line
    if line.startswith("serving "):
      return line.split()[1]
  raise AssertionError(text)


def test_servers_killed_in_mid_run(store, processes, free_port):
  """Three servers; each killed with SIGKILL once and started again."""
  start = lambda part, port: processes(
    [*SERVE, f"--store={store.root}", f"--port={port}"]
    + [f"--part={part}", "--parts=3"]
  )
  running = [start(part, 0) for part in range(3)]
  found = [address(process) for process in running]
  ports = [int(place.rpartition(":")[2]) for place in found]
  stream = ServerStream(",".join(found), SITE, B, timeout_s=60)
  expected = StoreStream(store, SITE, B)
  for step, rows in stream.iterate(0, 130):
    np.testing.assert_array_equal(rows, expected.batch(step))
    if step in (20, 50, 80):
      part = step // 30
      running[part].kill()
      running[part].wait()
      running[part] = start(part, ports[part])
  assert step == 129


CLIENT = """
import hashlib, sys, time
from gemmascope_jax.data.serving.client import ServerStream
stream = ServerStream(sys.argv[1], "res.0", 128, trainer="killed")
for step, rows in stream.iterate(int(sys.argv[2]), 200):
  print(step, hashlib.sha256(rows).hexdigest(), flush=True)
  time.sleep(0.01)
"""


def test_four_trainers_one_killed_and_one_reading(serve, wide_store, processes):
  """Rows read from the store < 1.2 of what one trainer needs."""
  size = 128 * 2304 * 4
  serving = serve(store=wide_store, buffer_bytes=30 * size, patience=60.0)
  expected = StoreStream(wide_store, "res.0", 128)
  expected = [rows.copy() for _, rows in expected.iterate(0, 200)]
  found = {}

  def train(name, seconds):
    stream = ServerStream(serving.address, "res.0", 128, trainer=name)
    for step, rows in stream.iterate(0, 200):
      found[name, step] = np.array_equal(rows, expected[step])
      time.sleep(seconds)

  threads = [
    threading.Thread(target=train, args=(f"speed {seconds}", seconds))
    for seconds in (0.0, 0.005, 0.02)
  ]
  start = 0
  for last in (40, None):
    client = processes(
      [sys.executable, "-c", CLIENT, serving.address, str(start)]
    )
    for line in client.stdout:
      step, digest = line.split()
      same = digest == hashlib.sha256(expected[int(step)]).hexdigest()
      found["killed", int(step)] = same
      if int(step) == last:
        client.kill()
        break
      if len(found) == 1:  # all four begin together
        for thread in threads:
          thread.start()
    client.wait()
    start = 35  # its checkpoint was a little older
  for thread in threads:
    thread.join()
  assert len(found) == 4 * 200 and all(found.values())
  stats = serving.stats()
  assert stats["rows_served"] >= 4 * 200 * 128
  assert stats["rows_read"] < 1.2 * 200 * 128


def test_what_people_see(store, processes):
  process = processes([*SERVE, f"--store={store.root}", "--status_seconds=0.2"])
  place = address(process)
  list(ServerStream(place, SITE, B, trainer="me").iterate(0, 30))
  iterator = ServerStream(place, SITE, B, trainer="other").iterate()
  list(itertools.islice(iterator, 5))
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  text = process.stdout.read()
  iterator.close()
  assert process.wait(20) == 0
  assert str(store.root) in text and "rows   0..899 of 900" in text
  assert "anyone, on this machine only" in text and "warning" not in text
  assert re.search(r"rows/s; .*MiB/s.*buffer \d+%; other at \d", text)
  assert "SIGTERM" in text
  assert re.search(r"rows served +[\d,]+ \(", text)
  assert re.search(r"served per read +\d", text)
  assert re.search(r"trainer .*next step .*\nother +res\.1 ", text)


def test_open_to_the_network(serve):
  hosts = serve(host="0.0.0.0")
  assert "anyone who reaches 0.0.0.0" in status.warning(hosts)
  with_token = serve(host="0.0.0.0", token="secret")
  assert "in the clear" in status.warning(with_token)
  assert "who has the token" in status.hello(with_token)
  assert status.warning(serve()) is None


ERRORS = [
  (["--store=/nowhere"], "/nowhere holds no store"),
  (["--part=8", "--parts=8"], "part 8 of 8: expected a part from 0"),
  (["--parts=9"], "as the store has shards, 8"),
  (["--tls_cert=x"], "expected both or neither"),
  (["--tls_cert=/no/cert", "--tls_key=/no/key"], "/no/cert"),
  (["--host=192.0.2.1"], "can't listen on 192.0.2.1:0"),
  (["--buffer_gib=0"], "expected more than 0 GiB"),
  (["--token_file=/dev/null"], "/dev/null is empty: expected the token"),
]
EVERY_ERROR = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from experiments import serve

flags.FLAGS(["serve"])
for arguments in json.loads(sys.argv[1]):
  with flagsaver.flagsaver():
    flags.FLAGS(["serve", *arguments])
    try:
      serve.main([])
    except SystemExit as error:
      print("case", error.code)
"""


def test_errors(store):
  arguments = [[f"--store={store.root}", *flags] for flags, _ in ERRORS]
  result = subprocess.run(
    [sys.executable, "-c", EVERY_ERROR, json.dumps(arguments)],
    capture_output=True,
    text=True,
    timeout=60,
  )
  found = result.stdout.split("case ")[1:]
  assert len(found) == len(ERRORS), result
  for text, (_, message) in zip(found, ERRORS, strict=True):
    assert text.startswith("error: ") and message in text


def test_a_port_that_is_taken(store, serve):
  first = serve()
  with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{first.port}"):
    server.StoreServer(store, port=first.port)


@pytest.fixture
def certificate(tmp_path):
  if shutil.which("openssl") is None:
    pytest.skip("openssl, which makes the certificate, is not installed")
  cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
  subprocess.run(
    ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days=2"]
    + ["-keyout", str(key), "-out", str(cert), "-subj=/CN=localhost"]
    + ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
    check=True,
    capture_output=True,
  )
  return cert, key


def test_encrypted(store, serve, certificate):
  cert, key = certificate
  tls = (cert.read_bytes(), key.read_bytes())
  serving = serve(tls=tls, token="secret")
  assert serving.address.startswith("grpc+tls://")
  assert "encrypted" in status.hello(serving)
  stream = ServerStream(
    serving.address, SITE, B, token="secret", tls_ca=cert, timeout_s=5
  )
  expected = StoreStream(store, SITE, B).batch(7)
  np.testing.assert_array_equal(stream.batch(7), expected)
  start = time.monotonic()
  with pytest.raises(ConnectionError, match="nobody trusted has signed"):
    ServerStream(serving.address, SITE, B, token="secret")
  assert time.monotonic() - start < 10
  plain = serving.address.replace("+tls", "")
  with pytest.raises(ConnectionError, match="is away for 1 s.*grpc.tls"):
    ServerStream(plain, SITE, B, token="secret", timeout_s=1.0)


def test_a_machine_that_falls_silent(store, processes, free_port, monkeypatch):
  """No goodbye, no closed socket: only that nothing comes any more."""
  monkeypatch.setattr("gemmascope_jax.data.serving.connection.SILENCE", 1.0)
  process = processes([*SERVE, f"--store={store.root}", "--port=0"])
  stream = ServerStream(address(process), SITE, B, timeout_s=3)
  iterator = stream.iterate()
  next(iterator)
  os.kill(process.pid, signal.SIGSTOP)
  with pytest.raises(ConnectionError, match="is away for 3 s"):
    list(itertools.islice(iterator, 100_000))


def test_stats_of_a_connection(serve):
  connection = Connection(serve().address)
  assert connection.action("stats")["trainers"] == []
  assert connection.action("describe")["rows"] == 900
