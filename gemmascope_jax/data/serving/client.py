"""The stream of a trainer that reads from servers.

Same batches, same fingerprint as a `StoreStream` over the store that they
serve, so a run may move between file and servers from one step to the next.
State is the step: after a lost connection, a server's or its own restart, it
asks again from there.

Letters: B rows in a batch, D width of the site.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from gemmascope_jax.data.serving import access, memory, protocol
from gemmascope_jax.data.serving.assembly import Assembly
from gemmascope_jax.data.serving.connection import (
  Connection,
  LostConnectionError,
)
from gemmascope_jax.data.stores.store_plan import StoreMismatchError, StorePlan
from gemmascope_jax.data.streams import stream
from gemmascope_jax.data.streams.buffers import Buffers
from gemmascope_jax.data.streams.order import Order, Shuffle

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts
_REMIND = 60  # seconds between notes that a batch does not come
_GOODBYE = 2.0  # seconds to tell a server


class ServerStream:
  """Batches of a store, from the servers that together own it.

  A thread for each server puts its rows into their batches as they come.
  Memory: (ahead + 2) batches of float32, and what is on its way.

  Attributes:
    see `stream.ActivationStream`.
  """

  waits_for = "servers"

  def __init__(
    self,
    addresses: str,
    site: str,
    batch_size: int,
    shuffle: Shuffle | None = None,
    *,
    token: str | None = None,
    tls_ca: str | os.PathLike | None = None,
    timeout_s: float = 300.0,
    trainer: str | None = None,
  ):
    """Asks the servers what they serve; waits for those that are not up yet.

    Args:
      addresses: of all servers of a store, comma-separated: grpc://host:port,
        or grpc+tls://host:port.
      site: one of the store's sites.
      batch_size: B.
      shuffle: the order of rows; None: the paper's, with seed 0.
      token: the servers'; None: GEMMASCOPE_SERVER_TOKEN, if it is set.
      tls_ca: PEM file of who signed the servers' certificates; None: the
        system's authorities.
      timeout_s: seconds without a server after which to give up.
      trainer: a name of its own for the servers to know it by, the same after
        a restart; None: a new one.

    Raises:
      ConnectionError: a server did not answer in time.
      PermissionError: it wants another token.
      StoreMismatchError: the servers serve different stores.
      ValueError: their rows are not each row once, the site is not there, a
        number is out of range, or versions differ.
    """
    self.site, self.batch_size = site, batch_size
    self.shuffle = shuffle or Shuffle()
    self._token, self._tls_ca = token or access.read_token(), tls_ca
    self._timeout = timeout_s
    self._trainer = trainer or (
      f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    )
    self._addresses = [a.strip() for a in addresses.split(",") if a.strip()]
    if not self._addresses:
      raise ValueError("no servers: expected grpc://host:port, comma-separated")
    told = [self._describe(address) for address in self._addresses]
    self._store = _require_one_store(self._addresses, told)
    self._owned = _require_all_rows(self._addresses, told)
    if site not in told[0]["sites"]:
      raise ValueError(
        f"site {site}: {self._addresses[0]} serves"
        f" {', '.join(told[0]['sites'])}"
      )
    about = told[0]["sites"][site]
    plan = StorePlan.from_dict(told[0]["plan"], self._addresses[0])
    self.width, self.rows = about["width"], told[0]["rows"]
    Order(self.rows, batch_size, self.shuffle)  # or its error
    self.mean = np.array(about["mean"], np.float64)
    self.mean_square_norm = about["mean_square_norm"]
    self.policy, self.model = plan.policy, plan.model
    self.fingerprint, self.provenance = stream.identity(
      plan, self._store, site, batch_size, self.shuffle
    )
    self._buffers = Buffers()
    self._lock = threading.Lock()
    self._iterating: set[str] = set()
    memory.keep_freed()

  def batch(self, step: int, part: slice = stream.WHOLE) -> np.ndarray:
    """Batch number `step`, from 0: float32 [B, D]. Depends on no other call.

    Args:
      step: from 0.
      part: consecutive rows of the batch, for one process of several.
    """
    for _, rows in self._iterate(step, step + 1, part, 0, None):
      return rows

  def iterate(
    self,
    start: int = 0,
    stop: int | None = None,
    *,
    part: slice = stream.WHOLE,
    ahead: int = 2,
  ) -> Iterator[tuple[int, np.ndarray]]:
    """(step, batch), received ahead by threads.

    The threads end, and the servers are told, when the iterator is closed or
    dropped.

    Args:
      start: the first step.
      stop: the step after the last; None: there is none.
      part: consecutive rows of each batch, for one process of several.
      ahead: batches that wait, ready or in the making, at most.

    Raises:
      ConnectionError: a server is away for `timeout_s` seconds.
      CorruptStoreError: a server found a damaged shard.
      StoreMismatchError: a server came back with another store or other rows.
    """
    return self._iterate(start, stop, part, ahead, self._trainer)

  def _iterate(self, start, stop, part, ahead, trainer):
    if start < 0:
      raise ValueError(f"step {start}: expected at least 0")
    first, last, stride = part.indices(self.batch_size)
    if stride != 1:
      raise ValueError(f"part {part}: expected consecutive rows of the batch")
    if first >= last:
      for step in _steps(start, stop):
        yield step, np.empty((0, self.width), np.float32)
      return
    if trainer and (first, last) != (0, self.batch_size):
      trainer = f"{trainer}[{first}:{last}]"  # one process of several
    if trainer:
      with self._lock:
        while trainer in self._iterating:
          trainer += "'"  # a second iterator beside the first
        self._iterating.add(trainer)
    assembly = Assembly(start, last - first, self.width, ahead, self._buffers)
    followers = [
      _Follower(
        self._connect(address),
        self._ticket(owned, (first, last), start, stop, trainer),
        assembly,
        self._timeout,
      )
      for address, owned in zip(self._addresses, self._owned, strict=True)
    ]
    for follower in followers:
      follower.start()
    try:
      for step in _steps(start, stop):
        rows = assembly.take(step, functools.partial(_watch, followers, step))
        yield step, rows
        del rows  # so that its memory can be used again
    finally:
      assembly.close()
      for follower in followers:
        follower.end()
      with self._lock:
        self._iterating.discard(trainer)

  def _ticket(self, owned, part, start, stop, trainer) -> protocol.Ticket:
    return protocol.Ticket(
      stream=self.fingerprint,
      store=self._store,
      owned=owned,
      site=self.site,
      batch_size=self.batch_size,
      shuffle=self.shuffle.to_dict(),
      part=part,
      start=start,
      stop=stop,
      trainer=trainer,
    )

  def _connect(self, address: str) -> Connection:
    return Connection(address, self._token, self._tls_ca)

  def _describe(self, address: str) -> dict[str, Any]:
    """What a server says that it serves; waits for it."""
    patience = _Patience(address, self._timeout)
    while True:
      try:
        told = self._connect(address).action("describe")
        break
      except LostConnectionError as error:
        time.sleep(patience.pause(error))
    protocol.require_format(told, f"server {address}")
    return told


def _steps(start: int, stop: int | None):
  return itertools.count(start) if stop is None else range(start, stop)


def _watch(followers: list[_Follower], step: int, waited: float) -> None:
  """Looks after servers that a trainer waits for."""
  for follower in followers:
    follower.cancel_if_silent()
  if int(waited) % _REMIND == _REMIND - 1:
    owing = ", ".join(f.address for f in followers if f.step <= step)
    logging.warning("step %d: waiting %.0f s for %s", step, waited, owing)


def _require_one_store(addresses: list[str], told: list[dict]) -> str:
  """The fingerprint of the store that all servers serve."""
  for address, description in zip(addresses, told, strict=True):
    if description["store"] != told[0]["store"]:
      raise StoreMismatchError(
        f"server {address} serves store {description['store']},"
        f" {addresses[0]} serves {told[0]['store']}: give the addresses of one"
        " store's servers"
      )
  return told[0]["store"]


def _require_all_rows(
  addresses: list[str], told: list[dict]
) -> list[tuple[int, int]]:
  """The rows that each server owns; each row has to have one owner."""
  owned = [tuple(description["owned"]) for description in told]
  row = 0
  for first, stop in [*sorted(owned), (told[0]["rows"],) * 2]:
    if first != row:
      what = "no server owns" if first > row else "two servers own"
      have = ", ".join(
        f"{address} rows {first}..{stop - 1}"
        for address, (first, stop) in zip(addresses, owned, strict=True)
      )
      raise ValueError(
        f"{what} rows {min(row, first)}..{max(row, first) - 1}: expected each"
        f" of the {told[0]['rows']} rows at one server, found {have}; give the"
        " addresses of all parts, each once"
      )
    row = stop
  return owned


class _Patience:
  """How long to wait before trying a server again, and when to give up."""

  def __init__(self, address: str, timeout: float):
    self._address, self._timeout = address, timeout
    self.renew()

  def renew(self) -> None:
    """The server is there."""
    self._since: float | None = None
    self._pause = _FIRST_PAUSE

  def pause(self, error: Exception) -> float:
    """Seconds to wait after an attempt failed.

    Raises:
      ConnectionError: the server has been away for too long.
    """
    now = time.monotonic()
    if self._since is None:
      self._since = now
      logging.warning("server %s: %s; trying again", self._address, error)
    left = self._since + self._timeout - now
    if left <= 0:
      raise ConnectionError(
        f"server {self._address} is away for {self._timeout:.0f} s ({error}):"
        " start it again on the same port, or correct its address (grpc+tls://"
        " if it encrypts), and run the same command again; nothing is lost"
      ) from error
    pause = min(self._pause, left)
    self._pause = min(2 * self._pause, _LONGEST_PAUSE)
    return pause


class _Follower(threading.Thread):
  """Reads one server's rows into their batches, and keeps its place.

  Attributes:
    address: of the server.
    step: the first of which not all its rows are there.
  """

  def __init__(self, connection, ticket, assembly, timeout):
    super().__init__(name="ServerStream", daemon=True)
    self.address, self.step = connection.address, ticket.start
    self._connection, self._ticket = connection, ticket
    self._assembly = assembly
    self._patience = _Patience(self.address, timeout)

  def run(self) -> None:
    """The thread's work."""
    try:
      while not self._assembly.closed:
        try:
          self._read()
          return
        except LostConnectionError as error:
          if not self._assembly.closed:
            self._assembly.pause(self._patience.pause(error))
    except Exception as error:  # noqa: BLE001 - raised by who takes batches
      self._assembly.fail(error)

  def cancel_if_silent(self) -> None:
    """Connects anew if the server's machine went without a word."""
    self._connection.cancel_if_silent()

  def end(self) -> None:
    """Stops reading, and says good-bye if the server listens."""
    self._connection.cancel()
    self.join()
    if self._ticket.trainer is not None:
      with contextlib.suppress(Exception):  # it finds out by itself
        name = {"trainer": self._ticket.trainer}
        self._connection.action("leave", name, _GOODBYE)

  def _read(self) -> None:
    """Reads from `step` on, until nothing more is wanted."""
    ticket = dataclasses.replace(self._ticket, start=self.step)
    for head, places, rows in self._connection.read(ticket):
      self._patience.renew()
      if head.step < 0:
        continue
      if not self._assembly.add(head.step, places, rows):
        return
      if head.last:
        self.step = head.step + 1
    if ticket.stop is None:
      raise LostConnectionError("it closed the stream")
