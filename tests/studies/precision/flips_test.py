"""Flips on a tiny model: none, planted ones, and what is not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.sae.sae import SAE, Params
from gemmascope_jax.studies.precision import flips, low_precision
from gemmascope_jax.studies.precision import lm as lms
from gemmascope_jax.studies.replacements import FromSAE
from tests.data import tiny_gemma

SITE, POLICY, WIDTH = "res.1", tiny_gemma.POLICY, tiny_gemma.CONFIG.width


@pytest.fixture(scope="module", name="lm")
def _lm():
  return tiny_gemma.lm()


def tokens_of(sequences=5, length=10):
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 200, (sequences, length)).astype(np.int32)
  tokens[:, 0] = 2
  return tokens


def _sae(threshold=0.0):
  """A latent a coordinate, and as many of their negatives."""
  w = np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)], axis=1)
  w = w.astype(np.float32)
  zeros = lambda n: np.zeros(n, np.float32)
  full = np.full(2 * WIDTH, threshold, np.float32)
  return SAE(Params(w, zeros(2 * WIDTH), w.T.copy(), zeros(WIDTH), full))


def _flips(lm, folder, pairs, **options):
  return flips.flips(
    lm,
    SITE,
    pairs,
    tokens_of(),
    POLICY,
    folder,
    batch=2,
    progress=False,
    **options,
  )


def _acts(lm, tokens):
  x = gemma.forward(lm.config, lm.params, tokens, taps=(SITE,)).acts[SITE]
  return np.asarray(x, np.float32)


def test_the_same_sae_flips_nothing(lm, tmp_path):
  own = FromSAE(jax.tree.map(jnp.asarray, _sae(0.1)))
  low = low_precision.in_format(_sae(0.1), "float32")
  # Unit columns are exact in every format of weights.
  whole = low_precision.in_format(_sae(0.1), "int8")
  found = _flips(
    lm, tmp_path, {"same": (own, own), "low": (own, low), "int": (own, whole)}
  )
  assert [f.mean for f in found.values()] == [0, 0, 0]
  assert found["same"].n == 5


def test_flips_are_counted_over_tokens_that_count(lm, tmp_path):
  one, other = _sae(0.1), _sae(0.3)
  found = _flips(lm, tmp_path, {"a": (FromSAE(one), FromSAE(other))})["a"]
  size = np.abs(_acts(lm, tokens_of()))[:, 1:]  # all but BOS
  active, lost = size > 0.1, (size > 0.1) & (size <= 0.3)
  assert found.mean == pytest.approx(lost.sum() / active.sum())
  per = lost.sum(axis=(1, 2)) - found.mean * active.sum(axis=(1, 2))
  stderr = np.sqrt(5 / 4 * np.square(per).sum()) / active.sum()
  assert found.stderr == pytest.approx(stderr)


def test_the_other_model_is_what_the_second_reads(lm, tmp_path):
  own, low = FromSAE(_sae(0.1)), lms.lm_in(lm, "int4")
  found = _flips(lm, tmp_path, {"a": (own, own)}, other=low)["a"]
  masks = [
    np.stack([x > 0.1, x < -0.1])[:, :, 1:]
    for x in (_acts(lm, tokens_of()), _acts(low, tokens_of()))
  ]
  expected = (masks[0] != masks[1]).sum() / masks[0].sum()
  assert found.mean == pytest.approx(expected) and found.mean > 0


def test_none_where_it_cannot_be_said(lm, tmp_path):
  none, own = FromSAE(_sae(1e6)), FromSAE(_sae(0.1))
  assert _flips(lm, tmp_path, {"a": (none, own)}) == {"a": None}
  params = jax.tree.map(lambda x: x * np.float32(np.nan), lm.params)
  broken = dataclasses.replace(lm, params=params, weights_hash="broken")
  assert _flips(lm, tmp_path, {"a": (own, own)}, other=broken) == {"a": None}


def test_what_is_there_is_not_counted_again(lm, tmp_path, monkeypatch):
  pair = {"a": (FromSAE(_sae(0.1)), FromSAE(_sae(0.3)))}
  found = _flips(lm, tmp_path, pair)
  files = sorted(tmp_path.iterdir())
  assert len(files) == 3
  files[1].unlink()
  made, run = [], flips._batch
  monkeypatch.setattr(flips, "_batch", lambda *a: made.append(1) or run(*a))
  assert _flips(lm, tmp_path, pair) == found
  assert len(made) == 1
