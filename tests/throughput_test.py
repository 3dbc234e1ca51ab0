import time

import pytest

from gemmascope_jax import throughput


def test_rates_and_shares():
  meter = throughput.Meter()
  with meter.waiting("disk"):
    time.sleep(0.05)
  meter.add(10, 4000)
  time.sleep(0.05)
  first = meter.read()
  assert first["rows"] == 10 and first["bytes"] == 4000
  assert first["rows_per_second"] == pytest.approx(
    10 / first["seconds"], rel=0.02
  )
  assert 0.3 < first["waited"]["disk"] < 0.7
  meter.add(5, 2000)
  second, total = meter.read(), meter.total()
  assert second["rows"] == 5 and not second["waited"]
  assert total["rows"] == 15 and total["bytes"] == 6000
  assert total["seconds"] >= first["seconds"]


def test_for_people():
  summary = {
    "rows_per_second": 12345.6,
    "bytes_per_second": 3 * 2**30,
    "waited": {"disk": 0.25},
  }
  assert (
    throughput.rate(summary)
    == "12,346 rows/s, 3.00 GiB/s, waiting for disk 25%"
  )
  assert throughput.data_rate(5 * 2**20) == "5.0 MiB/s"
