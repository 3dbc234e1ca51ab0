"""Transcoders and crosscoders through the whole path, on a tiny model."""

import pathlib

import numpy as np
import pytest

import gemmascope_jax as gs
from gemmascope_jax import artifacts, experiment, metrics, training
from gemmascope_jax.experiment import activations
from tests.digests import digests
from tests.experiment_test import _config, _served, model, text  # noqa: F401

SITES = ("mlp_in.1", "mlp.1", "att.1", "res.1")
TRANSCODER = {
  "train.site": "mlp_in.1",
  "train.target_site": "mlp.1",
  "recipe.encoder_init": "he_uniform",
  "recipe.pre_encoder_bias": False,
  "train.members": ({}, {"skip": True}),
}
CROSSCODER = {"train.site": "att.1+res.1+mlp.1", "train.members": ({},)}
CHANGES = {"transcoder": TRANSCODER, "crosscoder": CROSSCODER}


def _sites_config(kind, model, text, workdir):  # noqa: F811
  config = _config(model, text, workdir)
  config.harvest.sites = SITES
  config.harvest.rows = 3_000
  config.train.sparsity_coefficients = ()
  config.recipe.sparsity_coefficient = 1e-5
  config.update_from_flattened_dict(CHANGES[kind])
  return config


@pytest.fixture(scope="module")
def harvested(model, text, tmp_path_factory):  # noqa: F811
  config = _sites_config(
    "transcoder", model, text, tmp_path_factory.mktemp("run")
  )
  return experiment.harvest(config)


def _trained(kind, harvested, model, text, workdir, source="", tokens=6_400):  # noqa: F811
  config = _sites_config(kind, model, text, workdir)
  config.data.source = source or str(harvested.root)
  config.train.tokens = tokens
  return config, experiment.train(config)


def _fvu(y_hat, y):
  error = np.square(np.asarray(y_hat, np.float64) - y).sum()
  return error / np.square(y - y.mean(axis=0)).sum()


def _last_fvus(workdir):
  lines = metrics.read_jsonl(workdir / "train" / training.METRICS)
  return [line["fvu"] for line in lines if line["step"] == lines[-1]["step"]]


def test_transcoders_learn_to_do_as_the_mlp(
  harvested,
  model,  # noqa: F811
  text,  # noqa: F811
  tmp_path,
):
  config, folders = _trained("transcoder", harvested, model, text, tmp_path)
  x, y = (harvested.read(site, 0, 3_000) for site in ("mlp_in.1", "mlp.1"))
  plain, skip = [gs.sae.load(folder) for folder in folders]
  for sae in (plain, skip):
    assert (sae.config.site, sae.config.target_site) == ("mlp_in.1", "mlp.1")
  assert plain.params.w_skip is None
  found = [_fvu(sae(x), y) for sae in (plain, skip)]
  assert found[1] < found[0] < 0.85
  assert _fvu(plain(x[::-1]), y) > 1
  # The last line is of one batch, these are of all rows.
  np.testing.assert_allclose(found, _last_fvus(tmp_path), rtol=0.2)
  # Inputs have norm sqrt(D) but for rounding, so that is C.
  assert plain.config.details()["normalisation"] == {
    site: pytest.approx(np.sqrt(x.shape[1]), rel=1e-3)
    for site in ("mlp_in.1", "mlp.1")
  }
  with pytest.raises(ValueError, match="transcoders and crosscoders .* not"):
    experiment.evaluate(config)
  lm = gs.gemma.load(config.lm.source)
  with pytest.raises(ValueError, match="a transcoder from mlp_in.1 to mlp.1"):
    gs.studies.fidelity(lm, {"mlp_in.1": plain}, harvested.tokens[:2])


def test_a_crosscoder_reconstructs_all_its_sites(
  harvested,
  model,  # noqa: F811
  text,  # noqa: F811
  tmp_path,
):
  _, (folder,) = _trained("crosscoder", harvested, model, text, tmp_path)
  sae = gs.sae.load(folder)
  sites = ("att.1", "res.1", "mlp.1")
  assert sae.config.site == "+".join(sites)
  assert tuple(sae.config.columns) == sites
  parts = {site: harvested.read(site, 0, 3_000) for site in sites}
  x = np.concatenate(list(parts.values()), axis=1)
  x_hat = sae(x)
  for site, columns in sae.config.columns.items():
    assert _fvu(x_hat[:, columns], parts[site]) < 0.8, site
  np.testing.assert_allclose(
    np.linalg.norm(sae.params.w_dec, axis=1), np.ones(96), rtol=1e-5
  )
  assert sae.config.details()["normalisation"] == {
    site: pytest.approx(np.sqrt(harvested.statistics(site)[1]))
    for site in sites
  }


@pytest.mark.parametrize("kind", CHANGES)
def test_servers_and_a_live_model_do_as_well(
  kind,
  harvested,
  model,  # noqa: F811
  text,  # noqa: F811
  tmp_path,
):
  run = lambda name, source="": _trained(
    kind, harvested, model, text, tmp_path / name, source, tokens=640
  )[1]
  stored = run("store")
  with _served(harvested.root) as address:
    served = run("served", address)
  live = run("live", activations.LIVE)
  for ours, theirs in zip(served, stored, strict=True):
    assert digests(ours, pattern="*.npz") == digests(theirs, pattern="*.npz")
  for ours, theirs in zip(live, stored, strict=True):
    ours, theirs = (dict(np.load(f / "params.npz")) for f in (ours, theirs))
    for name in theirs:  # C is measured on a sample: here all, summed otherwise
      np.testing.assert_allclose(
        ours[name], theirs[name], rtol=1e-3, atol=1e-3 * theirs[name].std()
      )


def test_a_run_is_of_its_sites(harvested, model, text, tmp_path):  # noqa: F811
  config, _ = _trained(
    "transcoder", harvested, model, text, tmp_path, tokens=64
  )
  config.train.target_site = "res.1"
  with pytest.raises(ValueError, match="another run: its stream is"):
    experiment.train(config)
  assert artifacts.read_json(tmp_path / "train/run.json")["site"] == "mlp_in.1"


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (
      {"train.target_site": "mlp.2"},
      "train.target_site mlp.2, but harvest.sites are .*: harvest mlp.2 too",
    ),
    ({"train.target_site": "mlp_in.1"}, "expected each site once"),
    ({"train.site": "mlp_in.1+res.1"}, "one site for a transcoder to read"),
    ({"train.site": "mlp_in.1+"}, "site '': expected KIND.LAYER"),
    ({"recipe.encoder_init": "transpose"}, "encoder_init is 'transpose', but"),
    ({"recipe.pre_encoder_bias": True}, "pre_encoder_bias is True, but"),
    (
      {"train.target_site": "", "recipe.skip": True},
      "recipe.skip is set.*train.target_site",
    ),
  ],
)
def test_settings_that_make_no_sense_are_refused_first(
  model,  # noqa: F811
  text,  # noqa: F811
  tmp_path,
  changes,
  says,
):
  config = _sites_config("transcoder", model, text, tmp_path)
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=says):
    experiment.harvest(config)
  assert not list(pathlib.Path(tmp_path).iterdir())
