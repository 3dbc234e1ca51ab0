"""The same batches whether 1, 2 or 4 processes feed the mesh."""

import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from gemmascope_jax.data.streams.order import Order, Shuffle

SCRIPT = pathlib.Path(__file__).parent / "feed_process.py"
SITE = "res.1"


def free_port():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def run(root, kind, count, folder):
  port = free_port()
  outs = [folder / f"{kind}-{count}-{i}.npy" for i in range(count)]
  processes = [
    subprocess.Popen(
      [sys.executable, SCRIPT, root, SITE, kind]
      + [str(i), str(count), str(port), str(out)],
      stderr=subprocess.PIPE,
      text=True,
    )
    for i, out in enumerate(outs)
  ]
  for process in processes:
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
  return [np.load(out) for out in outs]


@pytest.mark.parametrize(
  "kind", [pytest.param("bucket", marks=pytest.mark.slow), "global"]
)
def test_every_row_once_an_epoch_in_one_order(store, tmp_path, kind):
  every = store.read(SITE, 0, store.rows)
  order = Order(900, 60, Shuffle(3, kind, bucket_rows=256, block_rows=16))
  numbers = np.stack([order.row_numbers(step) for step in range(30)])
  for epoch in (numbers[:15], numbers[15:]):
    assert sorted(epoch.ravel()) == list(range(900))
  for count in (1, 2, 4):
    parts = run(store.root, kind, count, tmp_path)
    held = np.stack([~np.isnan(part[..., 0]) for part in parts])
    assert (held.sum(axis=0) == 1).all()  # each row in one process
    assert (held.sum(axis=(1, 2)) == 30 * 60 // count).all()
    together = np.nansum(np.stack(parts), axis=0)
    np.testing.assert_array_equal(together, every[numbers])
