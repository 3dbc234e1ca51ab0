"""Frequencies of latents that fire at known rates, and what follows."""

import json

import numpy as np
import pytest

from gemmascope_jax.studies import activity, findings, frequency
from tests.studies.activity import rows as made

ROWS = 20_000


@pytest.fixture(scope="module")
def planted():
  """Latents at 10^-3, at 0.3 and dead: 60, 4 and 16 of 80."""
  rng = np.random.default_rng(0)
  rates = np.r_[np.full(60, 1e-3), np.full(4, 0.3), np.zeros(16)]
  store = made.Rows(rng.random((ROWS, 80)) < rates, [200] * 100)
  return store, made.identity(80), rates


def test_what_was_planted_is_found(planted, tmp_path):
  store, sae, rates = planted
  path = tmp_path / "frequency.npz"
  result = frequency.run(
    {"a": sae}, store, "res.1", arrays=path, progress=False
  )
  json.dumps(result, allow_nan=False)
  assert (result["study"], result["format"]) == ("frequency", 1)
  assert result["tokens"] == {"counted": ROWS, "sequences": 100}
  (found,) = result["saes"]
  assert found["dead"]["mean"] == 16 / 80
  assert found["very_dense"]["mean"] == found["dense"]["mean"] == 4 / 80
  assert found["very_dense_latents"] == 4
  assert found["very_dense"]["stderr"] == pytest.approx(0, abs=1e-12)
  assert sum(found["histogram"]) == 64
  l0 = found["l0"]
  assert abs(l0["mean"] - rates.sum()) < 4 * l0["stderr"]
  assert found["mode"]["mean"] == pytest.approx(-3, abs=0.1)
  assert found["median"]["mean"] == pytest.approx(-3, abs=0.05)
  assert 0 < found["median"]["stderr"] < 0.1
  with np.load(tmp_path / result["arrays"]) as arrays:
    often = arrays["a|frequency"]
    np.testing.assert_allclose(often, (store.x > 0).mean(axis=0), rtol=1e-6)
    assert arrays["a|stderr"].shape == (80,)


@pytest.mark.slow
def test_errors_are_those_of_repeated_studies():
  """Latents of many rates: which are above 1 % differs between studies."""
  rng = np.random.default_rng(1)
  rates = 10 ** np.linspace(-3, -0.5, 200)
  found = []
  for _ in range(40):
    store = made.Rows(rng.random((4_000, 200)) < rates, [50] * 80)
    result = frequency.run(
      {"a": made.identity(200)}, store, "res.1", progress=False
    )
    (sae,) = result["saes"]
    keys = ("dense", "very_dense", "median")
    found.append([(sae[k]["mean"], sae[k]["stderr"]) for k in keys])
  means, errors = np.moveaxis(np.array(found), 2, 0)
  expected = means.std(axis=0, ddof=1)
  np.testing.assert_allclose(np.sqrt((errors**2).mean(0)), expected, rtol=0.4)


def test_a_histogram_has_every_latent_that_fired():
  found = frequency.histogram(np.array([0, 1e-12, 1e-3, 0.5, 1.0]))
  assert found.sum() == 4 and found[0] == 1 and found[-1] == 1
  assert np.isnan(frequency.mode(np.zeros(3)))


def test_a_dead_sae_has_no_mode(planted):
  store, _, _ = planted
  dead = made.identity(80, threshold=5)
  result = frequency.run({"a": dead}, store, "res.1", progress=False)
  (found,) = result["saes"]
  assert found["mode"] is None and found["dead"]["mean"] == 1
  json.dumps(result, allow_nan=False)


def test_findings(planted):
  store, sae, rates = planted
  look = lambda s: frequency.findings(
    frequency.run(s, store, "res.1", progress=False)
  )
  (found,) = look({"a": sae})
  assert found.verdict == findings.AGREES and "4 of 80" in found.seen
  # Nothing planted: no latent above 10 %.
  params = sae.params.replace(
    threshold=np.where(rates > 0.1, 9, 0).astype(np.float32)
  )
  none = sae.replace(params=params)
  (found,) = look({"a": none})
  assert found.verdict == findings.DISAGREES
  gated = none.replace(config=made.SAEConfig(family="gated", site="res.1"))
  _, found = look({"a": sae, "g": gated})
  assert found.verdict == findings.AGREES and "Gated" in found.claim
  same = sae.replace(config=made.SAEConfig(family="gated", site="res.1"))
  _, found = look({"a": sae, "g": same})
  assert found.verdict == findings.UNCLEAR


@pytest.mark.parametrize("threshold", [3, 0])
def test_one_sequence_is_too_little(threshold):
  store = made.Rows(np.ones((5, 2)), [5])
  result = frequency.run(
    {"a": made.identity(2, threshold=threshold)}, store, "res.1", progress=False
  )
  assert result["saes"][0]["dead"]["stderr"] is None
  (found,) = frequency.findings(result)
  assert found.verdict == findings.UNCLEAR


def test_a_pass_for_dashboards_gives_the_same(planted):
  store, sae, _ = planted
  found = activity.collect({"a": sae}, store, "res.1", progress=False)
  assert frequency.summarise(
    {"a": sae}, {"a": found["a"].frequencies}, "res.1"
  ) == frequency.run({"a": sae}, store, "res.1", progress=False)


def test_a_verdict_is_one_of_three():
  with pytest.raises(ValueError, match="verdict 'yes': expected 'agrees'"):
    findings.Finding("5", "", "", "yes")
