"""A server: batches of a store for trainers anywhere.

A server owns a contiguous slice of a store's shards, so that several of them
read as many disks; a trainer takes each batch's rows from those that own them.
It keeps no state but its buffers: what a trainer gets follows from the ticket,
so server and trainer may be killed and started again at any moment.

`describe` says what is served, `stats` how it goes, `leave` is a trainer's
good-bye; `DoGet` is the stream of batches.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from gemmascope_jax.data.serving import access, memory, protocol
from gemmascope_jax.data.serving.ready import Ended, Replaced
from gemmascope_jax.data.serving.shared import SharedStream
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_plan import StoreMismatchError, StorePlan
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.data.streams.stream import StoreStream

LOCAL = "127.0.0.1"
_LOCAL = (LOCAL, "localhost", "[::1]")
_BUCKETS = 3  # kept by a stream: trainers apart need more than two
_TIDY = 60.0  # seconds without a reader after which a stream is let go
_ALIVE = 5.0  # seconds without a batch after which a sign of life is sent


def owned_rows(plan: StorePlan, part: int, parts: int) -> tuple[int, int]:
  """The rows [first, stop) of one of several servers: whole shards.

  Raises:
    ValueError: there is no such part, or more parts than shards.
  """
  if not 0 <= part < parts <= plan.shards:
    raise ValueError(
      f"part {part} of {parts}: expected a part from 0 to parts - 1, and at"
      f" most as many parts as the store has shards, {plan.shards}"
    )
  size = plan.rows_per_shard
  first, stop = (
    number * plan.shards // parts * size for number in (part, part + 1)
  )
  return first, min(stop, plan.rows)


class StoreServer(flight.FlightServerBase):
  """Serves one store; listens once made, until `close`.

  Memory: `buffer_bytes`, and for each stream that is read (site, batch size,
  shuffle) three buckets of a `StoreStream` and a few batches (see `ready`).

  Attributes:
    address: where clients find it, such as "grpc://127.0.0.1:8815".
    store: the store.
    owned: rows [first, stop) that it serves.
    buffer_bytes: for ready batches, over all streams.
    patience: seconds, see `ready`.
    host: where it listens; is_local: whether only this machine reaches that.
    has_token, has_tls: whether it asks for a token, and encrypts.
  """

  def __init__(
    self,
    store: Store,
    *,
    host: str = LOCAL,
    port: int = 0,
    owned: tuple[int, int] | None = None,
    buffer_bytes: int = 1 << 30,
    patience: float = 30.0,
    token: str | None = None,
    tls: tuple[bytes, bytes] | None = None,
  ):
    """Begins to listen.

    Args:
      store: an open store.
      host: address of the network interface.
      port: 0 takes a free one.
      owned: rows to serve; None: all.
      buffer_bytes: for ready batches, over all streams.
      patience: seconds, see `ready`.
      token: asked of clients; None: anyone may read.
      tls: certificate and key, PEM; None: no encryption.

    Raises:
      OSError: the address is taken or not this machine's.
    """
    memory.keep_freed()
    scheme = "grpc+tls" if tls else "grpc"
    try:
      super().__init__(
        f"{scheme}://{host}:{port}",
        tls_certificates=[tls] if tls else None,
        middleware={"access": access.Gate(token)} if token else None,
      )
    except (pa.ArrowException, OSError) as error:
      raise OSError(
        f"can't listen on {host}:{port} ({error}): the port is taken, the"
        " address is not one of this machine, or certificate and key don't"
        " belong together; --port=0 takes a free port"
      ) from error
    self.address = f"{scheme}://{host}:{self.port}"
    self.store, self.owned = store, owned or (0, store.rows)
    self.host, self.is_local = host, host in _LOCAL
    self.has_token, self.has_tls = bool(token), bool(tls)
    self.buffer_bytes, self.patience = buffer_bytes, patience
    self._lock = threading.Lock()
    self._streams: dict[str, SharedStream] = {}
    self._closing = threading.Event()
    self._counted = dict.fromkeys(  # of streams that were let go
      ("rows_served", "bytes_served", "rows_read", "bytes_read"), 0
    )
    threading.Thread(target=self._tidy, name="tidy", daemon=True).start()

  def close(self) -> None:
    """Ends every stream (clients try to connect again) and the server."""
    self._closing.set()
    with self._lock:
      shared, self._streams = list(self._streams.values()), {}
    for stream in shared:
      self._retire(stream)
    self.shutdown()

  def describe(self) -> dict[str, Any]:
    """What is served, JSON-ready."""
    store = self.store
    sites = {}
    for site in store.sites:
      mean, square = store.statistics(site)
      sites[site] = {
        "width": store.width(site),
        "mean": mean.tolist(),
        "mean_square_norm": square,
      }
    return {
      "format": protocol.FORMAT,
      "store": store.fingerprint,
      "plan": store.plan.to_dict(),
      "rows": store.rows,
      "owned": list(self.owned),
      "sites": sites,
    }

  def stats(self) -> dict[str, Any]:
    """How it goes, JSON-ready.

    Returns:
      "rows_served", "bytes_served", "rows_read", "bytes_read": since the
      start; "buffer_bytes", "buffer_filled"; "trainers": of each, its "name",
      "site", "step", "age" in seconds since it last took a batch, and the
      numbers of its `throughput.Meter.total`.
    """
    with self._lock:
      shared, counted = list(self._streams.values()), dict(self._counted)
    now, trainers, filled = time.monotonic(), [], 0
    for stream in shared:
      filled += stream.ready.filled()
      _count(counted, stream)
      trainers += [
        {
          "name": trainer.name,
          "site": stream.stream.site,
          "step": trainer.step,
          "age": round(now - trainer.taken_at, 1),
          **trainer.meter.total(),
        }
        for trainer in stream.ready.trainers()
      ]
    return {
      **counted,
      "buffer_bytes": self.buffer_bytes,
      "buffer_filled": filled,
      "trainers": trainers,
    }

  def list_actions(self, context):
    """Flight's; names and meanings of the actions."""
    return [
      ("describe", "what is served"),
      ("stats", "how it goes"),
      ("leave", "a trainer's good-bye"),
      ("ping", "whether the server answers"),
    ]

  def do_action(self, context, action):
    """Flight's; JSON of `describe` or `stats`, or a trainer leaves."""
    try:
      if action.type == "leave":
        name = str(protocol.parse(action.body, "leave").get("trainer"))
        with self._lock:
          shared = list(self._streams.values())
        for stream in shared:
          stream.ready.leave(name)
        return [b"{}"]
      if action.type == "ping":
        return [b"{}"]
      if action.type not in ("describe", "stats"):
        raise ValueError(f"action {action.type!r}: see list_actions")
      return [json.dumps(getattr(self, action.type)()).encode()]
    except Exception as error:
      raise protocol.to_flight(error) from error

  def do_get(self, context, ticket):
    """Flight's; the stream of a ticket's batches."""
    try:
      asked = protocol.Ticket.from_bytes(ticket.ticket)
      shared = self._shared(asked)
      form = protocol.schema(
        shared.stream.width,
        shared.stream.dtype,
        positions=self.owned != (0, self.store.rows),
      )
    except Exception as error:
      raise protocol.to_flight(error) from error
    return flight.GeneratorStream(
      form, self._messages(asked, shared, form, context)
    )

  def _messages(self, asked, shared, form, context) -> Iterator[tuple]:
    try:
      for sent in shared.send(asked, context.is_cancelled, _ALIVE):
        if sent is None:
          yield protocol.sign_of_life(form)
          continue
        for message in protocol.messages(
          form, sent.step, sent.positions, sent.rows
        ):
          with sent.meter.waiting("trainer"):
            yield message
        del sent, message  # so that the buffer's memory can be used again
    except Replaced as error:
      raise protocol.to_flight(ValueError(str(error))) from error
    except Ended as error:
      raise flight.FlightUnavailableError("stopping; connect again") from error
    except Exception as error:
      raise protocol.to_flight(error) from error

  def _shared(self, asked: protocol.Ticket) -> SharedStream:
    """The stream that a ticket asks for."""
    store = self.store
    if asked.store != store.fingerprint:
      raise StoreMismatchError(
        f"serves store {store.fingerprint} ({store.plan.model}), not"
        f" {asked.store}: start the trainer with the addresses of that store's"
        " servers"
      )
    if asked.owned != self.owned:
      raise StoreMismatchError(
        f"serves rows {self.owned[0]}..{self.owned[1] - 1}, not"
        f" {asked.owned[0]}..{asked.owned[1] - 1} as before: start the trainer"
        " again, it goes on from its checkpoint"
      )
    with self._lock:
      if self._closing.is_set():
        raise flight.FlightUnavailableError("stopping")
      if asked.stream in self._streams:
        return self._streams[asked.stream]
    stream = StoreStream(
      store,
      asked.site,
      asked.batch_size,
      Shuffle.from_dict(asked.shuffle),
      self.owned,
      _BUCKETS,
    )
    if stream.fingerprint != asked.stream:
      raise ValueError(
        f"makes stream {stream.fingerprint} of what the trainer calls"
        f" {asked.stream}: run the same version of gemmascope_jax on both sides"
      )
    size = stream.batch_size * stream.width * stream.dtype.itemsize
    if 2 * size > self.buffer_bytes:
      raise ValueError(
        f"buffer of {self.buffer_bytes / 2**30:.3g} GiB: expected at least two"
        f" batches of {size / 2**30:.3g} GiB; start it with more --buffer_gib"
      )
    with self._lock:
      if asked.stream not in self._streams:
        self._streams[asked.stream] = SharedStream(stream, self.patience)
        self._resize()
      return self._streams[asked.stream]

  def _resize(self) -> None:
    """Divides the buffer among the streams; called with the lock held."""
    for shared in self._streams.values():
      shared.resize(self.buffer_bytes // len(self._streams))

  def _tidy(self) -> None:
    """Lets go of streams that nobody reads any more."""
    while not self._closing.wait(_TIDY):
      oldest = time.monotonic() - max(self.patience, _TIDY)
      with self._lock:
        idle = [
          name
          for name, shared in self._streams.items()
          if shared.ready.idle_since() < oldest
        ]
        shared = [self._streams.pop(name) for name in idle]
        if shared:
          self._resize()
      for stream in shared:
        self._retire(stream)

  def _retire(self, shared: SharedStream) -> None:
    shared.ready.close()
    with self._lock:
      _count(self._counted, shared)


def _count(counted: dict[str, int], shared: SharedStream) -> None:
  counted["rows_served"] += shared.rows_served
  counted["bytes_served"] += shared.bytes_served
  counted["rows_read"] += shared.ready.rows_read
  counted["bytes_read"] += shared.ready.bytes_read
