"""Real servers and trainers against the planner's simulation of them.

Servers are `StoreServer`s, trainers are processes that take their batches and
sleep for a step instead of computing. Disks are slowed by waiting after each
read, network lines by a proxy between, so that neither depends on the machine.
What is simulated is the same `simulate.Service`.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

from experiments.benchmarks import store_read, workers
from launch.planner import simulate

BATCH = 256
BATCH_BYTES = BATCH * store_read.WIDTH * 4
_GIB = 0.2
_PIECE = 1 << 16  # bytes that a proxy forwards at a time


class _Pace:
  """Lets bytes through at a rate, for all who share it."""

  def __init__(self, rate: float):
    self._rate, self._free = rate, 0.0
    self._lock = threading.Lock()

  def wait(self, size: int) -> None:
    with self._lock:
      self._free = max(self._free, time.monotonic()) + size / self._rate
      until = self._free
    time.sleep(max(0.0, until - time.monotonic()))


class _Proxy:
  """Forwards a port to another one; what comes back has a pace."""

  def __init__(self, port: int, pace: _Pace):
    self._port, self._pace = port, pace
    self._listening = socket.create_server(("127.0.0.1", 0))
    # Little memory, or whole batches would wait in it.
    self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
    self.address = f"grpc://127.0.0.1:{self._listening.getsockname()[1]}"
    threading.Thread(target=self._accept, daemon=True).start()

  def close(self) -> None:
    self._listening.close()

  def _accept(self) -> None:
    while True:
      try:
        client, _ = self._listening.accept()
      except OSError:
        return
      server = socket.socket()
      server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
      server.connect(("127.0.0.1", self._port))
      for ends, pace in (
        ((client, server), None),
        ((server, client), self._pace),
      ):
        threading.Thread(
          target=self._forward, args=(*ends, pace), daemon=True
        ).start()

  def _forward(self, source, target, pace) -> None:
    try:
      while data := source.recv(_PIECE):
        if pace:
          pace.wait(len(data))
        target.sendall(data)
    except OSError:
      pass  # one of them has been killed
    for end in (source, target):
      try:
        end.shutdown(socket.SHUT_RDWR)
      except OSError:
        pass


class _TrainerProcess:
  """A trainer, loaded and waiting for the word."""

  def __init__(self, name: str, spread: bool, addresses: str):
    self._process = subprocess.Popen(
      [sys.executable, "-m", __name__, name, str(int(spread)), addresses],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.steps = 0
    if self._process.stdout.readline() != "ready\n":
      raise RuntimeError("a trainer did not start: see its error above")

  def run(self, start: int, stop: int, step_seconds: float) -> bool:
    """Trains until the end; whether it was not killed."""
    self._process.stdin.write(f"{start} {stop} {step_seconds}\n")
    self._process.stdin.flush()
    for line in self._process.stdout:
      self.steps = int(line)
    return self._process.wait() == 0

  def kill(self) -> None:
    self._process.kill()


def run(service: simulate.Service, store) -> tuple[list[float], int]:
  """Runs a service with real servers.

  Args:
    service: each trainer preempted once at most, `preempted_at`.
    store: an open store of `store_read.make`.

  Returns:
    Seconds at which each trainer finished; bytes read from all disks.
  """
  from gemmascope_jax.data.serving import server as serving

  servers = []
  for part, each in enumerate(service.servers):
    owned = serving.owned_rows(store.plan, part, len(service.servers))
    servers.append(
      _slow(
        serving.StoreServer(
          store,
          owned=owned,
          buffer_bytes=int(each.buffer_bytes),
          patience=service.patience,
        ),
        each.disk_rate,
      )
    )
  proxies = [
    _Proxy(server.port, _Pace(each.network_rate))
    for server, each in zip(servers, service.servers, strict=True)
  ]
  addresses = ",".join(proxy.address for proxy in proxies)
  make = lambda name: _TrainerProcess(name, service.spread, addresses)
  lives = [
    [make(f"trainer {number}") for _ in range(1 + len(each.preempted_at))]
    for number, each in enumerate(service.trainers)
  ]
  read = lambda: sum(server.stats()["bytes_read"] for server in servers)
  finished, before = [0.0] * len(lives), read()
  begun = time.monotonic()

  def live(number):
    each, (first, *after) = service.trainers[number], lives[number]
    if after:
      until = each.preempted_at[0]
      killer = threading.Timer(until, first.kill)
      killer.start()
    if not first.run(0, service.steps, each.step_seconds):
      time.sleep(each.down_seconds)
      saved = first.steps // each.checkpoint_steps * each.checkpoint_steps
      if not after or not after[0].run(saved, service.steps, each.step_seconds):
        raise RuntimeError("a trainer failed: see its error above")
    finished[number] = time.monotonic() - begun

  threads = [
    threading.Thread(target=live, args=(number,))
    for number in range(len(lives))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  total = read() - before
  for each in (*servers, *proxies):
    each.close()
  return finished, total


def _slow(server, rate: float):
  """The server, with a disk that gives so many bytes a second."""
  pace, make = _Pace(rate), server._shared

  def shared(asked):
    found = make(asked)
    if not hasattr(found, "_stored"):
      found._stored = found.stream.stored

      def stored(step):
        positions, rows = found._stored(step)
        pace.wait(rows.nbytes)
        return positions, rows

      found.stream.stored = stored
    return found

  server._shared = shared
  return server


def _train(name: str, spread: str, addresses: str) -> None:
  """A trainer's process; prints after each step how many there were."""
  from gemmascope_jax.data.serving.client import ServerStream

  stream = ServerStream(
    addresses,
    store_read.SITE,
    BATCH,
    shuffle(bool(int(spread))),
    trainer=name,
  )
  stream.batch(0)  # the connection stands
  print("ready", flush=True)
  words = sys.stdin.readline().split()
  start, stop, seconds = int(words[0]), int(words[1]), float(words[2])
  for step, _ in stream.iterate(start, stop):
    time.sleep(seconds)
    print(step + 1, flush=True)


def shuffle(spread: bool):
  """The order of batches: of all servers' rows, or one server's after another's."""
  from gemmascope_jax.data.streams.order import Shuffle

  if spread:
    return Shuffle(kind="global", bucket_rows=2048, block_rows=64)
  return Shuffle(bucket_rows=2048)


def scenarios() -> dict[str, simulate.Service]:
  """What is compared, by name; each takes half a minute at most."""
  mib = 2**20
  server = simulate.Server(25 * mib, 60 * mib, 12 * BATCH_BYTES)
  fast = dataclasses.replace(server, disk_rate=200 * mib)
  quick, slow = simulate.Trainer(0.01), simulate.Trainer(0.2)
  away = simulate.Trainer(
    0.1, preempted_at=(3.0,), down_seconds=4.0, checkpoint_steps=10
  )
  base = simulate.Service((quick,), (server,), 100, BATCH_BYTES, patience=10.0)
  to = lambda **values: dataclasses.replace(base, **values)
  return {
    "one trainer, limited by the disk": base,
    "three trainers, limited by the line": to(trainers=(quick,) * 3, steps=60),
    "one trainer, limited by itself": to(trainers=(slow,), steps=60),
    "two servers, every batch from both": to(servers=(server,) * 2),
    "two servers, one after the other": to(
      servers=(server,) * 2, spread=False, steps=90
    ),
    "two servers, one with half the rate": to(
      servers=(server, dataclasses.replace(server, disk_rate=15 * mib))
    ),
    "a slow trainer is waited for": to(trainers=(quick, slow), servers=(fast,)),
    "a slow trainer is left behind": to(
      trainers=(quick, slow), servers=(fast,), patience=0.0
    ),
    "one of two is killed and comes back": to(
      trainers=(simulate.Trainer(0.1), away), servers=(fast,), patience=2.0
    ),
    "the same, a disk just fast enough for one reading": to(
      trainers=(simulate.Trainer(0.1), away), patience=2.0
    ),
    "the same, with patience": to(trainers=(simulate.Trainer(0.1), away)),
  }


def main() -> None:
  """Measures, simulates, and prints a table for docs/planning.md."""
  from gemmascope_jax.data.stores.store import Store

  print(f"{workers.machine()}, {datetime.date.today()}\n", flush=True)
  print(
    "| scenario | finished after, s | simulated | read, MiB | simulated |\n"
    "|---|---|---|---|---|"
  )
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder) / "store"
    store_read.make(root, _GIB)
    store = Store.open(root)
    for name, service in scenarios().items():
      seconds, read = run(service, store)
      found = simulate.run(service, chunk=1)
      times = lambda values: ", ".join(f"{value:.1f}" for value in values)
      print(
        f"| {name} | {times(seconds)} | {times(found.finished)}"
        f" | {read / 2**20:.0f} | {found.read / 2**20:.0f} |",
        flush=True,
      )


if __name__ == "__main__":
  _train(*sys.argv[1:])
