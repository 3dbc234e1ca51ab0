"""The planner against a real store, and real servers and trainers."""

import dataclasses

import pytest

from experiments.benchmarks import serve_trainers, store_read
from gemmascope_jax.data.stores.store import Store
from launch.planner import costs, simulate

_MIB = 2**20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  root = tmp_path_factory.mktemp("store") / "store"
  store_read.make(root, 0.04)
  return Store.open(root)


def test_bytes_are_those_of_a_harvested_store(store):
  root = store_read.shard_files(store.root)[0].parent
  size = sum(path.stat().st_size for path in root.glob("*.npy"))
  plan = store.plan
  assert size == costs.store_bytes(
    plan.rows, store_read.WIDTH, plan.dtype, plan.rows_per_shard
  )


def test_a_slow_and_a_quick_trainer_finish_when_simulated_ones_do(store):
  """The quick one is a buffer ahead, and waits."""
  service = simulate.Service(
    (simulate.Trainer(0.02), simulate.Trainer(0.15)),
    (simulate.Server(60 * _MIB, 300 * _MIB, 4 * serve_trainers.BATCH_BYTES),),
    30,
    serve_trainers.BATCH_BYTES,
  )
  waited = simulate.run(service, chunk=1)
  left = simulate.run(dataclasses.replace(service, patience=0.0), chunk=1)
  assert waited.finished[0] > left.finished[0] + 0.8  # else nothing is tested
  seconds, read = serve_trainers.run(service, store)
  # Never sooner, but for what a sleep is off; later where the machine is busy.
  for found, simulated in zip(seconds, waited.finished, strict=True):
    assert found > 0.8 * simulated
  # The trainers' first look has read one batch already.
  assert read == pytest.approx(waited.read, abs=2 * serve_trainers.BATCH_BYTES)
