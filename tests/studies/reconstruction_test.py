"""One pass without losses against the splicing study, and by definition."""

import dataclasses

import numpy as np
import pytest

from gemmascope_jax import gemma, studies
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies import agreement, reconstruction
from gemmascope_jax.studies.subjects import subject
from tests.data import tiny_gemma

POLICY = TokenPolicy.of(tiny_gemma.ByteTokenizer())


def _sae(lm, site, seed=0, latents=40, **config):
  width = sites.site_width(lm.config, site)
  target = sites.site_width(lm.config, config.get("target_site") or site)
  rng = np.random.default_rng(seed)
  w_dec = rng.normal(size=(latents, target)).astype(np.float32)
  return SAE(
    Params(
      w_enc=rng.normal(size=(width, latents)).astype(np.float32) * 0.3,
      b_enc=np.zeros(latents, np.float32),
      w_dec=w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True),
      b_dec=rng.normal(size=target).astype(np.float32) * np.float32(0.1),
      # From always to never: some are silent, some fire once.
      threshold=np.linspace(0, 6, latents, dtype=np.float32),
    ),
    SAEConfig(site=site, **config),
  )


@pytest.fixture(scope="module")
def world():
  lm = tiny_gemma.lm()
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 200, (5, 12)).astype(np.int32)
  tokens[:, 0] = 2
  tokens[2, 9:] = 0
  tokens[3, 5] = 1
  subjects = [
    subject(_sae(lm, "res.1"), "res"),
    subject(_sae(lm, "res.1", 1, k=5), "topk"),
    subject(_sae(lm, "mlp_in.1", 2, target_site="mlp.1"), "transcoder"),
  ]
  found = reconstruction.measure(
    lm, subjects, tokens, POLICY, batch=2, progress=False
  )
  return lm, tokens, subjects, found


def test_l0_and_fvu_are_those_of_the_splicing_study(world):
  lm, tokens, subjects, found = world
  for one in subjects[1:2]:
    other = studies.fidelity(lm, {"res.1": one.sae}, tokens, batch=5)["res.1"]
    for ours, theirs in (
      (found[one.name].l0(), other.l0),
      (found[one.name].fvu(), other.fvu),
    ):
      assert ours.mean == pytest.approx(theirs.mean, rel=1e-6)
      assert ours.stderr == pytest.approx(theirs.stderr, rel=1e-5)
      assert ours.n == theirs.n == 5


def test_a_transcoder_and_silent_latents_by_definition(world):
  lm, tokens, subjects, found = world
  keep = np.asarray(POLICY.keep(tokens))
  out = gemma.forward(
    lm.config,
    lm.params,
    tokens,
    taps=("mlp_in.1", "mlp.1", "res.1"),
    mask=tokens != 0,
  )
  acts = {name: np.asarray(x, np.float64) for name, x in out.acts.items()}
  for one in subjects:
    latents = np.asarray(one.sae.encode(out.acts[one.reads]))
    y = np.asarray(one.sae.decode(latents), np.float64)
    x = acts[one.site]
    spread = np.square(x[keep] - x[keep].mean(axis=0)).sum()
    fvu = np.square(y - x)[keep].sum() / spread
    reading = found[one.name]
    assert reading.fvu().mean == pytest.approx(fvu, rel=1e-5)
    fires = (latents > 0) & keep[..., None]
    silent = reading.silent_share()
    assert silent.mean == (~fires.any(axis=(0, 1))).mean()
    # The jackknife, sequence by sequence.
    without = [
      (~np.delete(fires, s, axis=0).any(axis=(0, 1))).mean() for s in range(5)
    ]
    spread = np.square(np.array(without) - np.mean(without)).sum()
    assert silent.stderr == pytest.approx(np.sqrt(4 / 5 * spread))
  assert 0 < found["res"].silent_share().mean < 1
  assert found["res"].silent_share().stderr > 0


def test_batches_change_nothing_and_a_part_pairs_with_the_whole(world):
  lm, tokens, subjects, found = world
  some = reconstruction.measure(
    lm,
    subjects,
    tokens[[3, 1]],
    POLICY,
    means={one.site: found[one.name].mean for one in subjects},
    batch=2,
    progress=False,
  )
  where = agreement.shared(
    agreement.keys(tokens), agreement.keys(tokens[[3, 1]])
  )
  assert where.tolist() == [3, 1]
  for one in subjects:
    for each in ("count", "active", "squared_error", "variance"):
      np.testing.assert_allclose(
        getattr(some[one.name], each),
        getattr(found[one.name], each)[where],
        rtol=1e-5,
      )
    for each in agreement.compare(
      found[one.name], some[one.name], where, "float32"
    ):
      assert each.paired and each.holds and "paired difference" in str(each)
      assert each.difference.n == 2


def test_readings_are_kept_and_a_damaged_one_is_made_again(world, tmp_path):
  lm, tokens, subjects, found = world
  measure = lambda: reconstruction.measure(
    lm, subjects, tokens, POLICY, batch=2, folder=tmp_path, progress=False
  )
  measure()
  files = sorted(tmp_path.iterdir())
  assert len(files) == 3
  files[0].write_bytes(files[0].read_bytes()[:100])
  times = [file.stat().st_mtime_ns for file in files]
  again = measure()
  assert [f.stat().st_mtime_ns for f in files[1:]] == times[1:]
  for name, reading in again.items():
    for field in dataclasses.fields(reading):
      np.testing.assert_array_equal(
        getattr(reading, field.name), getattr(found[name], field.name)
      )


def test_nothing_that_counts_is_refused(world):
  lm, tokens, subjects, _ = world
  with pytest.raises(ValueError, match="nothing to average"):
    reconstruction.measure(
      lm, subjects, np.full_like(tokens, 2), POLICY, progress=False
    )
