"""What a client and a server say to each other.

Arrow Flight, with JSON for everything but rows. A client asks with a `Ticket`
for the rows that a server owns of the batches from some step on. They come as
record batches of at most 2 MiB, in stored form (bfloat16 as its bits, half the
traffic of float32), each with a `Head`. Messages of 2 MiB with HTTP/2's largest frames are
what gRPC moves fastest: 0.9 to 1.2 of the rate of raw TCP on one machine of two
cores with one client, 0.7 to 0.9 with four (0.5 MiB: 0.6 to 0.9 and 0.4 to 0.6;
18 MiB: 0.7 to 0.9 and 0.3 to 0.6).

A server that owns all rows sends no positions: a message's rows are
consecutive rows of the batch.

Letters: D width of the site.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from gemmascope_jax import artifacts
from gemmascope_jax.data.stores.shards import CorruptStoreError
from gemmascope_jax.data.stores.store_plan import StoreMismatchError

FORMAT = 1
MESSAGE_BYTES = 2 << 20
# Of a channel: HTTP/2 frames as large as they may be, and a fixed window instead
# of probing for one, which is less work for the CPU. The window is what may be on
# its way to a client.
OPTIONS = (
  ("grpc.http2.max_frame_size", (1 << 24) - 1),
  ("grpc.http2.lookahead_bytes", 16 << 20),
  ("grpc.http2.bdp_probe", 0),
)
_HEAD = struct.Struct("<qqq")
_ERRORS = {
  error.__name__: error
  for error in (CorruptStoreError, StoreMismatchError, ValueError, OSError)
}
_UNTRUSTED = ("certificate verify failed", "not in peer certificate")
_MOST_TEXT = 2000  # gRPC carries an error in headers, which are short


@dataclasses.dataclass(frozen=True)
class Ticket:
  """A request for batches.

  Attributes:
    stream: fingerprint of the stream; it covers all that makes the batches.
    store: fingerprint of the store.
    owned: the rows [first, stop) that the client takes this server to own.
    site: the site.
    batch_size: rows in a batch.
    shuffle: `Shuffle.to_dict()`.
    part: rows [first, stop) of each batch that are wanted.
    start: the first step.
    stop: the step after the last, or None.
    trainer: who asks, for the server to keep step with; None: a reader of
      single batches, whom nobody waits for.
  """

  stream: str
  store: str
  owned: tuple[int, int]
  site: str
  batch_size: int
  shuffle: dict[str, Any]
  part: tuple[int, int]
  start: int
  stop: int | None
  trainer: str | None

  def to_bytes(self) -> bytes:
    """JSON, with the format's version."""
    value = {"format": FORMAT, **dataclasses.asdict(self)}
    return artifacts.canonical_json(value).encode()

  @classmethod
  def from_bytes(cls, data: bytes) -> Ticket:
    """The inverse of `to_bytes`.

    Raises:
      ValueError: no ticket, one of another format, or numbers out of range.
    """
    value = parse(data, "ticket")
    require_format(value, "the client")
    try:
      del value["format"]
      value["owned"], value["part"] = (
        tuple(value["owned"]),
        tuple(value["part"]),
      )
      ticket = cls(**value)
      first, stop = ticket.part
      good = 0 <= first < stop <= ticket.batch_size and ticket.start >= 0
    except (KeyError, TypeError) as error:
      raise ValueError(f"not a ticket: {error}") from error
    if not good:
      raise ValueError(
        f"ticket for rows {first}..{stop - 1} of batches from step"
        f" {ticket.start}: expected rows within 0..{ticket.batch_size - 1} and"
        " a step of at least 0"
      )
    return ticket


def parse(data: bytes, what: str) -> dict[str, Any]:
  """JSON of an object. Raises ValueError with `what` if it is not."""
  try:
    value = json.loads(bytes(data))
  except ValueError as error:
    raise ValueError(f"{what} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{what} is {value!r}, expected a JSON object")
  return value


def require_format(value: dict[str, Any], who: str) -> None:
  """Raises ValueError unless `value` is of this version of the protocol."""
  if value.get("format") != FORMAT:
    raise ValueError(
      f"{who} speaks version {value.get('format')} of the protocol, this side"
      f" version {FORMAT}: run the same version of gemmascope_jax on both"
    )


class Head(NamedTuple):
  """What a message's rows are.

  Attributes:
    step: of the batch; -1: nothing new, only a sign of life.
    first: place in the part of the message's first row, if it has no positions.
    last: whether the server sends nothing more of this step.
  """

  step: int
  first: int = 0
  last: int = 1


def schema(width: int, dtype: np.dtype, positions: bool) -> pa.Schema:
  """Of the messages: rows of `width` numbers, and their positions if asked."""
  fields = [pa.field("rows", pa.list_(pa.from_numpy_dtype(dtype), width))]
  if positions:
    fields.append(pa.field("positions", pa.int32()))
  return pa.schema(fields)


def messages(
  form: pa.Schema,
  step: int,
  positions: np.ndarray,
  rows: np.ndarray,
) -> Iterator[tuple[pa.RecordBatch, bytes]]:
  """A batch's rows as messages; nothing is copied.

  Args:
    form: of `schema`.
    step: of the batch.
    positions: int [k], ascending, in the part that was asked for; all of it if
      the schema has no positions.
    rows: [k, D] in stored form, contiguous.
  """
  size = max(1, MESSAGE_BYTES // rows[:1].nbytes)
  for start in range(0, len(rows), size):
    some = rows[start : start + size]
    numbers = pa.Array.from_buffers(  # pa.array would copy them
      form.field(0).type.value_type, some.size, [None, pa.py_buffer(some)]
    )
    columns = [
      pa.FixedSizeListArray.from_arrays(numbers, type=form.field(0).type)
    ]
    if len(form) > 1:
      columns.append(pa.array(positions[start : start + size], pa.int32()))
    head = Head(step, int(positions[start]), start + size >= len(rows))
    yield pa.record_batch(columns, schema=form), _HEAD.pack(*head)


def sign_of_life(form: pa.Schema) -> tuple[pa.RecordBatch, bytes]:
  """A message without rows."""
  return pa.RecordBatch.from_pylist([], schema=form), _HEAD.pack(*Head(-1))


def unpack(
  data: pa.RecordBatch, metadata: pa.Buffer
) -> tuple[Head, slice | np.ndarray, np.ndarray]:
  """The inverse of `messages`, without a copy.

  Returns:
    the head, where in the part the rows go, and the rows [k, D] in stored form.
  """
  head = Head(*_HEAD.unpack(metadata.to_pybytes()))
  column = data.column(0)
  rows = column.flatten().to_numpy(zero_copy_only=True)
  rows = rows.reshape(-1, column.type.list_size)
  if data.num_columns > 1:
    return head, data.column(1).to_numpy(), rows
  return head, slice(head.first, head.first + len(rows)), rows


def to_flight(error: Exception) -> flight.FlightError:
  """An error as a server sends it."""
  if isinstance(error, flight.FlightError):
    return error
  kind = next(
    (name for name, known in _ERRORS.items() if isinstance(error, known)), ""
  )
  text = str(error) if kind else f"{type(error).__name__}: {error}"
  text = text[:_MOST_TEXT]
  return flight.FlightServerError(
    text, extra_info=json.dumps({"kind": kind, "text": text}).encode()
  )


def from_flight(error: Exception, address: str) -> Exception | None:
  """What a client raises for an error of Flight; None: try again.

  Args:
    error: as Flight raised it.
    address: of the server.
  """
  if isinstance(
    error, (flight.FlightUnauthenticatedError, flight.FlightUnauthorizedError)
  ):
    return PermissionError(
      f"server {address} refused the token: give both sides the same one, in"
      " GEMMASCOPE_SERVER_TOKEN or in a file"
    )
  text = str(error).lower()
  if any(words in text for words in _UNTRUSTED):
    return ConnectionError(
      f"server {address}: nobody trusted has signed its certificate for that"
      " address; give the file of who did (tls_ca in"
      " Python, --config.data.source_ca)"
    )
  info = getattr(error, "extra_info", None)
  if not info:
    return None
  value = parse(info, "the server's error")
  kind = _ERRORS.get(value["kind"], RuntimeError)
  return kind(f"server {address}: {value['text']}")
