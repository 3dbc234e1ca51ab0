"""The data pipeline: reading, serving and harvesting, each against a ceiling.

Needs 3 GiB of disk and of memory.
"""

from __future__ import annotations

import datetime
import pathlib
import tempfile

from experiments.benchmarks import (
  store_harvest,
  store_read,
  store_serve,
  workers,
)

_GIB = 2.25


def main() -> None:
  """Measures, and prints tables for docs/benchmarks.md."""
  print(f"{workers.machine()}, {datetime.date.today()}", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder) / "store"
    store_read.make(root, _GIB)
    print(
      f"\nRead: {_GIB} GiB of float32 rows, width {store_read.WIDTH}, batches of"
      f" {store_read.BATCH}\n"
    )
    store_read.measure(root)
    print("\nServe: the same rows over loopback\n")
    store_serve.measure(root)
  print("\nHarvest: Gemma 3 270M, windows of 256 tokens, batches of 8\n")
  store_harvest.measure()
