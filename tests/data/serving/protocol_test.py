import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from gemmascope_jax.data.serving import protocol
from gemmascope_jax.data.stores.shards import CorruptStoreError


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("with_positions", [True, False])
def test_rows_arrive_as_they_were(monkeypatch, dtype, with_positions):
  monkeypatch.setattr(protocol, "MESSAGE_BYTES", 100)
  rows = np.arange(60).astype(dtype).reshape(12, 5)
  positions = np.arange(3, 15)
  form = protocol.schema(5, np.dtype(dtype), with_positions)
  out, ends = np.zeros((20, 5), dtype), []
  for batch, metadata in protocol.messages(form, 7, positions, rows):
    head, places, part = protocol.unpack(batch, pa.py_buffer(metadata))
    assert head.step == 7 and part.nbytes <= 100
    assert np.shares_memory(part, rows)  # nothing is copied
    out[places] = part
    ends.append(head.last)
  np.testing.assert_array_equal(out[3:15], rows)
  assert not out[:3].any() and not out[15:].any()
  assert ends == [0] * (len(ends) - 1) + [1] and len(ends) > 1


def test_a_sign_of_life_has_no_rows():
  form = protocol.schema(5, np.dtype(np.uint16), True)
  batch, metadata = protocol.sign_of_life(form)
  head, _, rows = protocol.unpack(batch, pa.py_buffer(metadata))
  assert head.step == -1 and rows.shape == (0, 5)


def test_errors_keep_their_kind_and_text():
  for error, kind in [
    (CorruptStoreError("x/3.npy: row 7"), CorruptStoreError),
    (FileNotFoundError(2, "gone", "x"), OSError),
    (KeyError("bug"), RuntimeError),
  ]:
    sent = protocol.to_flight(error)
    raised = protocol.from_flight(sent, "grpc://a:1")
    assert type(raised) is kind
    assert "server grpc://a:1: " in str(raised)
  assert "KeyError: 'bug'" in str(raised)
  away = flight.FlightUnavailableError("stopping")  # to be tried again
  assert protocol.from_flight(protocol.to_flight(away), "grpc://a:1") is None
