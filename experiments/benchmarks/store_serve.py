"""Serving: an activation server's clients against raw loopback TCP.

The rival sends as many bytes from one buffer through plain sockets, which reads
no store, checks nothing and knows no batch: the ceiling on this machine. Every
client is a process of its own; several share one server, as trainers do.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import threading
import time

import numpy as np

from experiments.benchmarks import store_read, workers

_BATCHES = 48
_ROUNDS = 5
_CLIENTS = (1, 4)
_BATCH_BYTES = store_read.BATCH * store_read.WIDTH * 4


def _serve_flight() -> None:
  from gemmascope_jax.data.serving.client import ServerStream
  from gemmascope_jax.data.streams.order import Shuffle

  def measure(request):
    stream = ServerStream(
      request["address"],
      store_read.SITE,
      store_read.BATCH,
      Shuffle(bucket_rows=1 << 16),
    )
    batches = stream.iterate(request["first"], request["first"] + _BATCHES)
    next(batches)  # the connection stands
    start = time.perf_counter()
    size = sum(batch.nbytes for _, batch in batches)
    return {"rate": size / (time.perf_counter() - start)}

  workers.serve(measure)


def _serve_tcp() -> None:
  buffer = memoryview(bytearray(_BATCH_BYTES))

  def measure(request):
    host, port = request["address"].split(":")
    with socket.create_connection((host, int(port))) as connection:
      start, size = time.perf_counter(), 0
      for _ in range(_BATCHES - 1):
        got = 0
        while got < _BATCH_BYTES:
          got += connection.recv_into(buffer[got:])
        size += got
    return {"rate": size / (time.perf_counter() - start)}

  workers.serve(measure)


def _serve_bytes() -> None:
  """The rival's server: prints its port and sends to whoever connects."""
  buffer = np.random.default_rng(0).bytes(_BATCH_BYTES)

  def send(connection):
    with connection:
      for _ in range(_BATCHES - 1):
        connection.sendall(buffer)

  with socket.create_server(("127.0.0.1", 0)) as server:
    print(f"127.0.0.1:{server.getsockname()[1]}", flush=True)
    while True:
      connection, _ = server.accept()
      threading.Thread(target=send, args=(connection,), daemon=True).start()


def _rate(clients: list[workers.Worker], request: dict) -> float:
  """Bytes a second to all clients together."""
  with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
    start = time.perf_counter()
    answers = list(pool.map(lambda client: client.ask(request), clients))
    seconds = time.perf_counter() - start
  if len(clients) == 1:
    return answers[0]["value"]["rate"]
  return len(clients) * _BATCHES * _BATCH_BYTES / seconds


def measure(root: pathlib.Path) -> None:
  """Prints a table of rates and ratios."""
  count = max(_CLIENTS)
  flights = [workers.Worker(__name__, "flight") for _ in range(count)]
  plains = [workers.Worker(__name__, "tcp") for _ in range(count)]
  rival = subprocess.Popen(
    [sys.executable, "-m", __name__, "bytes"],
    stdout=subprocess.PIPE,
    text=True,
  )
  server = subprocess.Popen(
    [sys.executable, "-m", "experiments.serve", f"--store={root}", "--port=0"]
    + ["--status_seconds=3600"],
    stdout=subprocess.PIPE,
    text=True,
  )
  plain_address = rival.stdout.readline().strip()
  address = _address(server)
  print(
    "| clients | server, GiB/s | raw TCP, GiB/s | ratio | server's memory, GiB"
    " |\n|---|---|---|---|---|",
    flush=True,
  )
  try:
    for clients in _CLIENTS:
      ours, theirs = [], []
      _rate(flights[:clients], {"address": address, "first": 0})
      for number in range(_ROUNDS):
        request = {"address": plain_address}
        theirs.append(_rate(plains[:clients], request))
        # Other batches than before, so that none is ready.
        first = (1 + number) * _BATCHES + clients * 1000
        request = {"address": address, "first": first}
        ours.append(_rate(flights[:clients], request))
      ratio = statistics.median(
        o / t for o, t in zip(ours, theirs, strict=True)
      )
      print(
        f"| {clients} | {statistics.median(ours) / 2**30:.2f} |"
        f" {statistics.median(theirs) / 2**30:.2f} | {ratio:.2f} |"
        f" {workers.anonymous_gib(server.pid):.2f} |",
        flush=True,
      )
  finally:
    for worker in [*flights, *plains]:
      worker.close()
    for process in (server, rival):
      process.terminate()
      process.wait()


def _address(server: subprocess.Popen) -> str:
  for line in server.stdout:
    found = re.search(r"grpc://[\w.]+:\d+", line)
    if found:
      return found[0]
  raise RuntimeError("the server ended before it said where it listens")


if __name__ == "__main__":
  {"flight": _serve_flight, "tcp": _serve_tcp, "bytes": _serve_bytes}[
    sys.argv[1]
  ]()
