"""A client's line to one server."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from gemmascope_jax.data.serving import access, protocol

# A stream that was cut off may raise any of Arrow's errors, not only Flight's.
_FLIGHT = (flight.FlightError, pa.ArrowException)
_LOOK = 0.2  # seconds between looks at whether nothing is wanted any more
_CALL = 20.0  # seconds for an action
SILENCE = 30.0  # seconds without a message, after which a server is lost


class LostConnectionError(ConnectionError):
  """The server is away, or went away: to be tried again."""


class Connection:
  """Calls to one server; each new attempt is a new connection.

  Attributes:
    address: such as "grpc://10.0.0.2:8815".
  """

  def __init__(
    self,
    address: str,
    token: str | None = None,
    tls_ca: str | os.PathLike | None = None,
  ):
    """Connects to nothing yet.

    Args:
      address: grpc://host:port or grpc+tls://host:port.
      token: the server's; see `access`.
      tls_ca: PEM file of who signed the server's certificate; None: the
        system's authorities.

    Raises:
      ValueError: no such address.
    """
    scheme, _, place = address.partition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("grpc", "grpc+tls") or not host or not port.isdigit():
      raise ValueError(
        f"server {address!r}: expected grpc://host:port or grpc+tls://host:port"
      )
    self.address = address
    self._headers = access.headers(token)
    self._certificates = tls_ca and pathlib.Path(tls_ca).read_bytes()
    if self._certificates and b"-----BEGIN" not in self._certificates:
      raise ValueError(f"{tls_ca} is no certificate: expected a PEM file")
    self._lock = threading.Lock()
    self._reader: flight.FlightStreamReader | None = None
    self._cancelled = False
    self._waiting_since: float | None = None

  def action(
    self,
    name: str,
    value: dict[str, Any] | None = None,
    seconds: float = _CALL,
  ) -> dict[str, Any]:
    """Calls an action of the server; its answer, parsed.

    Raises:
      LostConnectionError: there is no connection, or it broke.
      PermissionError: the token is wrong.
      ConnectionError: the server's certificate is not to be trusted.
      ValueError, OSError, CorruptStoreError: as the server says.
    """
    body = json.dumps(value or {}).encode()
    with self._client() as client, self._translated():
      results = client.do_action((name, body), self._options(seconds))
      answer = [result.body.to_pybytes() for result in results]
    return protocol.parse(b"".join(answer), f"the answer of {self.address}")

  def read(
    self, ticket: protocol.Ticket
  ) -> Iterator[tuple[protocol.Head, slice | np.ndarray, np.ndarray]]:
    """The messages of a ticket, see `protocol.unpack`; raises as `action`."""
    with self._translated():
      client, reader = self._begin(flight.Ticket(ticket.to_bytes()))
      with self._lock:
        self._reader = reader
        if self._cancelled:
          reader.cancel()
      try:
        while True:
          try:
            self._waiting_since = time.monotonic()
            chunk = reader.read_chunk()
          except StopIteration:
            return
          finally:
            self._waiting_since = None
          yield protocol.unpack(chunk.data, chunk.app_metadata)
      finally:
        with self._lock:
          self._reader = None
        _close(client, reader)

  def _begin(
    self, ticket: flight.Ticket
  ) -> tuple[flight.FlightClient, flight.FlightStreamReader]:
    """A client and its `do_get`, which by itself waits for an answer for ever.

    Both belong to a thread until they are taken: to close a client while it is
    called ends the process.
    """
    answer: queue.SimpleQueue = queue.SimpleQueue()
    given_up = threading.Event()

    def call():
      try:
        client = self._client()
        try:
          # Unlike the call after it, this one ends where nobody answers.
          ping = client.do_action(("ping", b""), self._options(_CALL))
          list(ping)
          answer.put((client, client.do_get(ticket, self._options(None))))
        except Exception:
          client.close()
          raise
      except Exception as error:  # noqa: BLE001 - raised below
        answer.put(error)
      if given_up.is_set():
        drop()

    def drop():
      with contextlib.suppress(queue.Empty):
        found = answer.get_nowait()
        if not isinstance(found, Exception):
          _close(*found)

    threading.Thread(target=call, name="do_get", daemon=True).start()
    deadline = time.monotonic() + SILENCE
    while time.monotonic() < deadline and not self._cancelled:
      try:
        found = answer.get(timeout=_LOOK)
      except queue.Empty:
        continue
      if isinstance(found, Exception):
        raise found
      return found
    given_up.set()
    drop()
    if self._cancelled:
      raise LostConnectionError("cancelled")
    raise LostConnectionError(f"it answered nothing for {SILENCE:.0f} s")

  def cancel(self) -> None:
    """Ends `read`, now and ever, from any thread."""
    with self._lock:
      self._cancelled = True
      if self._reader is not None:
        self._reader.cancel()

  def cancel_if_silent(self) -> None:
    """Makes `read` raise if the server's machine went without a word."""
    since = self._waiting_since
    if since is not None and time.monotonic() - since > SILENCE:
      with self._lock:
        if self._reader is not None:
          self._reader.cancel()

  @contextlib.contextmanager
  def _translated(self) -> Iterator[None]:
    """Turns what the server says into an error of ours."""
    try:
      yield
    except _FLIGHT as error:
      ours = protocol.from_flight(error, self.address)
      raise ours or LostConnectionError(_first_line(error)) from error

  def _client(self) -> flight.FlightClient:
    return flight.FlightClient(
      self.address,
      tls_root_certs=self._certificates or None,
      generic_options=[
        *protocol.OPTIONS,
        ("grpc.use_local_subchannel_pool", 1),  # or it waits to reconnect
      ],
    )

  def _options(self, seconds: float | None) -> flight.FlightCallOptions:
    return flight.FlightCallOptions(timeout=seconds, headers=self._headers)


def _close(
  client: flight.FlightClient, reader: flight.FlightStreamReader
) -> None:
  reader.cancel()
  client.close()


def _first_line(error: Exception) -> str:
  """What Flight says, without gRPC's context."""
  return str(error).partition(". gRPC client debug context")[0].split("\n")[0]
