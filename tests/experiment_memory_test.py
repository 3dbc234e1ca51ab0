"""Batches chosen from memory, and weights in parts, through the config."""

import jax
import numpy as np
import pytest

from gemmascope_jax import artifacts, experiment
from gemmascope_jax.data.stores.batch_choice import TooLargeError
from gemmascope_jax.experiment import memory, settings
from tests import experiment_test
from tests.digests import digests

model, text = experiment_test.model, experiment_test.text


@pytest.fixture
def config(model, text, tmp_path):
  config = experiment_test._config(model, text, tmp_path / "run")
  config.harvest.sites = ("res.1",)
  config.harvest.batch = 0
  config.mesh.memory_gib = 0.001
  config.mesh.data = 2
  return config


def test_a_batch_is_chosen_said_and_kept(config, tmp_path, capsys):
  made = experiment.harvest(config)
  said = capsys.readouterr().err
  chosen = made.plan.batch
  assert chosen % 2 == 0
  assert f"harvest.batch: {chosen} sequences of 16 tokens, which take" in said
  record = artifacts.read_json(tmp_path / "run" / memory.RECORD)
  assert record["batch"] == chosen and record["why"] in said
  # Where it was begun, it goes on; without a word, and with other memory.
  config.mesh.memory_gib = 1.0
  again = memory.harvest_batch(config, ("res.1",), None, 3)
  assert again == chosen and not capsys.readouterr().err
  # The same as a batch that is given, with parameters in parts.
  config.harvest.batch, config.workdir = chosen, str(tmp_path / "given")
  config.mesh.fully_sharded = True
  lm = settings.load_lm(config, ("res.1",))
  query = lm.params["layer_1"]["attn"]["q"]
  assert query.addressable_shards[0].data.shape[0] * 2 == query.shape[0]
  given = experiment.harvest(config)
  assert given.plan.fingerprint == made.plan.fingerprint
  assert digests(given.root, pattern="*.npy").keys()
  np.testing.assert_allclose(
    given.read("res.1", 0, 50), made.read("res.1", 0, 50), rtol=1e-5, atol=1e-5
  )


def test_a_batch_that_devices_cannot_share_is_said(config, capsys):
  config.harvest.batch = 3
  mesh = settings.mesh(config)
  assert memory.harvest_batch(config, ("res.1",), mesh, 3) == 3
  said = capsys.readouterr().err
  assert "harvest.batch is 3, which is not split over the 2 devices" in said
  config.harvest.batch = 4
  assert memory.harvest_batch(config, ("res.1",), mesh, 3) == 4
  assert not capsys.readouterr().err


def test_what_can_not_be_chosen(config):
  choose = lambda: memory.harvest_batch(config, ("res.1",), None, 3)
  config.mesh.memory_gib = 1e-5
  with pytest.raises(TooLargeError, match="The weights alone are too large"):
    choose()
  config.mesh.memory_gib = 0.0
  if jax.default_backend() == "cpu":
    with pytest.raises(ValueError, match="set mesh.memory_gib"):
      choose()
  config.harvest.parts = 2
  with pytest.raises(ValueError, match="harvest.parts is 2"):
    choose()
  config.harvest.batch = -1
  with pytest.raises(ValueError, match="harvest.batch is -1"):
    settings.check(config)
