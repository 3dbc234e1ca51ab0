"""The whole path in two processes, against the same in one."""

import shutil
import sys
import time

import ml_collections
import numpy as np
import pytest

from configs import quickstart
from gemmascope_jax import artifacts, experiment
from gemmascope_jax.experiment import settings
from launch import group, runs
from tests import experiment_test
from tests.digests import digests

model, text = experiment_test.model, experiment_test.text


@pytest.fixture(scope="module")
def config(model, text, tmp_path_factory):
  config = experiment_test._config(
    model, text, tmp_path_factory.mktemp("two") / "run"
  )
  config.harvest.sites = ("res.1",)
  config.train.tokens = 3_200
  config.mesh.model = 2
  return config


@pytest.fixture(scope="module")
def two(config):
  """Work directory of two processes, with one device each."""
  folder = settings.workdir(config)
  defaults = _flat(quickstart.get_config())
  command = (
    sys.executable,
    "-m",
    "experiments.quickstart",
    *(
      f"--config.{name}={value}"
      for name, value in _flat(config).items()
      if value != defaults[name]
    ),
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    patch.setenv("PJRT_NPROC", "16")
    patch.setenv("JAX_PLATFORMS", "cpu")
    started = group.Group(runs.Run(folder, command), 2)
  until = time.monotonic() + 300
  while not started.is_over():
    if time.monotonic() > until:
      started.ask_to_end(1)
    time.sleep(0.1)
  logs = [(folder / name).read_text() for name in group.log_names(2)]
  assert started.status == 0, logs
  assert "process 1 of 2" in logs[1]
  return folder


def _flat(config, before=""):
  values = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      values |= _flat(value, f"{before}{name}.")
    else:
      values[before + name] = value
  return values


def test_they_harvest_the_same_bytes(config, two, tmp_path):
  one = config.copy_and_resolve_references()
  one.workdir, one.mesh.model = str(tmp_path), 1
  experiment.harvest(one)
  shards = digests(tmp_path / "store", pattern="*.npy")
  found = digests(two / "store", pattern="*.npy")
  assert len([name for name in shards if "res.1" in name]) > 6
  assert {k: v for k, v in found.items() if "tokens/" not in k} == shards


def test_they_train_and_measure_the_same(config, two, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(two, run)
  for name in ("train", "results", "releases", "report"):
    shutil.rmtree(run / name, ignore_errors=True)
  one = config.copy_and_resolve_references()
  one.workdir = str(run)
  experiment.train(one)  # on two devices of one process
  saes = digests(two / "train/saes")
  assert saes
  assert digests(run / "train/saes") == saes
  one.mesh.model = 1  # each of two processes had a model of its own
  experiment.evaluate(one)
  ours, theirs = (
    artifacts.read_json(folder / "results/fidelity.json")["rows"]
    for folder in (run, two)
  )
  assert len(ours) == len(theirs) > 2
  for our, their in zip(ours, theirs, strict=True):
    for name in ("delta_loss", "fvu", "l0"):
      if our[name] is None:  # of a bound that has none
        assert their[name] is None
        continue
      np.testing.assert_allclose(
        [our[name]["mean"], our[name]["stderr"]],
        [their[name]["mean"], their[name]["stderr"]],
        rtol=1e-6,
        atol=1e-9,
      )
  released = digests(two / "releases", pattern="params.npz")
  assert len(released) == len(saes) // 2  # each with its sae.json
  assert digests(run / "releases", pattern="params.npz") == released
  assert (two / "report/index.html").exists()


def test_parts_are_not_given_to_processes_that_divide_the_work(config):
  refused = config.copy_and_resolve_references()
  refused.mesh.data, refused.mesh.model = 3, 1
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(settings.jax, "process_count", lambda: 2)
    with pytest.raises(
      ValueError, match=r"mesh.data is 3: expected a multiple"
    ):
      settings.own_mesh(refused)
