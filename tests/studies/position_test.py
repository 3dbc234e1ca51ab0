"""Planted effects: an SAE that errs at one position, and one that does not."""

import numpy as np
import pytest

from gemmascope_jax.studies import position
from gemmascope_jax.studies.findings import AGREES, DISAGREES, UNCLEAR
from gemmascope_jax.studies.records import SiteRecord, SpliceRecord

LENGTH, WIDTH = 160, 4


def _pair(profile, delta=0.0, sequences=40, seed=0):
  """Records whose squared error at position t is about profile[t]."""
  rng = np.random.default_rng(seed)
  shape = (sequences, LENGTH)
  x = rng.normal(size=(*shape, WIDTH)) + 2
  keep = np.ones(shape, bool)
  keep[:, 0] = False
  keep[0, 5] = False
  noise = rng.uniform(0.5, 1.5, shape)
  clean = rng.uniform(1, 5, (sequences, LENGTH - 1))
  site = SiteRecord.of(x, keep, ~keep, x[keep].mean(0), clean, keep[:, :-1])
  loss = clean + delta * rng.uniform(0, 2, clean.shape)
  squared = np.asarray(profile)[None] * noise
  squared[~keep] = 1e9  # must not matter
  ones = np.ones(shape)
  spliced = SpliceRecord(
    squared, 3 * ones, ones, ones, loss, loss, np.zeros((1, 4, WIDTH))
  )
  return site, spliced


def test_an_error_at_one_position_is_found_there_and_nowhere_else():
  profile = np.zeros(LENGTH)
  profile[7] = 1.0
  delta = np.zeros(LENGTH - 1)
  delta[7] = 0.3
  site, spliced = _pair(profile, delta)
  found = position.by_position(site, spliced)["positions"]
  assert found["first"] == found["last"] == list(range(1, LENGTH))
  values = np.array(found["reconstruction"])
  token = site.variance().sum() / site.count.sum()
  mean = spliced.squared_error[:, 7].mean() / token
  assert values[6] == pytest.approx(mean)
  expected = spliced.squared_error[:, 7].std(ddof=1) / 40**0.5 / token
  assert found["reconstruction_stderr"][6] == pytest.approx(expected)
  assert np.delete(values, 6).max() == 0
  rise = np.array(found["delta_loss"][:-1])
  assert rise[6] == pytest.approx(0.3, rel=0.3)
  assert np.abs(np.delete(rise, 6)).max() < 1e-6
  assert found["delta_loss"][-1] is None  # the last position predicts nothing


def test_bins_cover_every_position_once():
  for length in (2, 3, 17, 1024):
    found = position.bins(length)
    covered = [t for first, end in found for t in range(first, end)]
    assert covered == list(range(1, length))
  assert len(position.bins(1024)) < 35
  site, spliced = _pair(np.linspace(0, 1, LENGTH))
  curves = position.by_position(site, spliced)
  bins, single = curves["bins"], np.array(curves["positions"]["reconstruction"])
  for first, last, value in zip(
    bins["first"], bins["last"], bins["reconstruction"], strict=True
  ):
    assert value == pytest.approx(single[first - 1 : last].mean(), rel=0.02)


def _verdicts(profiles, delta=0.0):
  records = {n: _pair(p, delta) for n, p in profiles.items()}
  rows = [{"name": n, "site": f"{n}.3", "l0": None} for n in profiles]
  result = position.result(rows, records)
  assert result["study"] == "position"
  return [f.verdict for f in position.findings(result)]


def test_findings_follow_the_curves():
  at = np.arange(LENGTH)
  rising = 0.4 * (1 - np.exp(-at / 30)) + 0.01
  peaked = 0.4 * np.exp(-(np.log(np.maximum(at, 1) / 10) ** 2)) + 0.01
  flat = np.full(LENGTH, 0.2)
  as_paper = {"res": rising, "att": rising, "mlp": peaked}
  later = np.where(np.arange(LENGTH - 1) < 4, 0.1, 0.2)
  assert _verdicts(as_paper, later) == [AGREES] * 4
  against = {"res": peaked, "att": peaked, "mlp": rising}
  assert _verdicts(against, later[::-1])[1:3] == [DISAGREES, DISAGREES]
  assert _verdicts({"res": flat, "mlp": flat})[:3] == [UNCLEAR] * 3
  assert _verdicts({"res": rising})[1] == UNCLEAR  # no MLP site
