"""Where a stage's time goes: what it did, and what it waited for.

A stage is one thread's work in a pipeline: reading rows, copying them to the
device, taking a step, writing a shard. In a pipeline one stage limits all
others; it is the one that does not wait.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any


class Meter:
  """Seconds of waiting, rows and bytes of one stage.

  One thread writes; any thread may read. Time that is not spent waiting counts
  as busy. A wait counts once it is over.
  """

  def __init__(self):
    self._totals = _Counts(time.monotonic())
    self._since = _Counts(self._totals.start)

  @contextlib.contextmanager
  def waiting(self, why: str) -> Iterator[None]:
    """Counts the time inside as waiting for `why`, such as "disk"."""
    start = time.monotonic()
    try:
      yield
    finally:
      seconds = time.monotonic() - start
      for counts in (self._totals, self._since):
        counts.waited[why] = counts.waited.get(why, 0.0) + seconds

  def add(self, rows: int, size: int = 0) -> None:
    """Counts work done: `rows` rows, `size` bytes."""
    for counts in (self._totals, self._since):
      counts.rows += rows
      counts.size += size

  def read(self) -> dict[str, Any]:
    """What happened since the last `read`; see `total`."""
    counts, self._since = self._since, _Counts(time.monotonic())
    return counts.summary()

  def total(self) -> dict[str, Any]:
    """What happened since the start.

    Returns:
      "seconds", "rows", "bytes", "rows_per_second", "bytes_per_second", and
      "waited": the share of the time spent waiting, {why: 0..1}.
    """
    return self._totals.summary()


class _Counts:
  """Counts from one moment on."""

  def __init__(self, start: float):
    self.start, self.rows, self.size = start, 0, 0
    self.waited: dict[str, float] = {}

  def summary(self) -> dict[str, Any]:
    seconds = max(time.monotonic() - self.start, 1e-9)
    return {
      "seconds": round(seconds, 3),
      "rows": self.rows,
      "bytes": self.size,
      "rows_per_second": round(self.rows / seconds, 1),
      "bytes_per_second": round(self.size / seconds, 1),
      "waited": {
        why: round(min(spent / seconds, 1.0), 4)
        for why, spent in self.waited.items()
      },
    }


def rate(summary: Mapping[str, Any]) -> str:
  """A meter's summary for people: "12,345 rows/s, 0.11 GiB/s, ..."."""
  parts = [
    f"{summary['rows_per_second']:,.0f} rows/s",
    data_rate(summary["bytes_per_second"]),
  ]
  parts += [
    f"waiting for {why} {share:.0%}" for why, share in summary["waited"].items()
  ]
  return ", ".join(parts)


def data_rate(bytes_per_second: float) -> str:
  """Bytes a second for people: MiB/s below one GiB/s, else GiB/s."""
  if bytes_per_second < 2**30:
    return f"{bytes_per_second / 2**20:.1f} MiB/s"
  return f"{bytes_per_second / 2**30:.2f} GiB/s"
