"""What no metric may depend on: batches, order, units, and the origin."""

import dataclasses

import numpy as np
import pytest

from gemmascope_jax.sae.sae import SAE, Params
from gemmascope_jax.studies import measure, replacements
from gemmascope_jax.studies.records import SiteRecord, SpliceRecord
from tests.data import tiny_gemma

SITE, POLICY = "res.1", tiny_gemma.POLICY
SEQUENCES, LENGTH, WIDTH = 7, 12, 12


@pytest.fixture(scope="module", name="lm")
def _lm():
  config = dataclasses.replace(
    tiny_gemma.CONFIG, attn_softcap=2.0, final_softcap=3.0, window=4
  )
  return dataclasses.replace(tiny_gemma.lm(), config=config)


def _tokens():
  shape = SEQUENCES, LENGTH
  tokens = np.random.default_rng(0).integers(4, 200, shape).astype(np.int32)
  tokens[:, 0] = 2
  tokens[2, 5] = 1  # EOS amid text
  tokens[4, 8:] = 0  # padding
  return tokens


def _sae(latents=30):
  rng = np.random.default_rng(8)
  w_dec = rng.normal(size=(latents, WIDTH)).astype(np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  params = Params(
    w_enc=w_dec.T.copy(),
    b_enc=rng.normal(0, 0.1, latents).astype(np.float32),
    w_dec=w_dec * np.float32(0.4),
    b_dec=rng.normal(0, 0.3, WIDTH).astype(np.float32),
    threshold=np.full(latents, 0.3, np.float32),
  )
  return SAE(params)


def _metrics(site, splice):
  return {
    "fvu": splice.fvu(site),
    "l0": splice.l0(site),
    "clean": site.clean(),
    "spliced": splice.loss_spliced(site),
    "delta loss": splice.delta_loss(site),
    "kl": splice.divergence(site),
    "cosine": splice.cosine(site),
    "gamma": splice.bias(site),
  }


def _measured(lm, folder, tokens, batch, shift=0.5):
  site, records = measure.measure(
    lm,
    SITE,
    {"sae": replacements.FromSAE(_sae())},
    tokens,
    POLICY,
    np.full(WIDTH, shift),
    folder,
    batch=batch,
    progress=False,
  )
  return _metrics(site, records["sae"])


def _same(found, expected, of=None):
  for name in of or expected:
    one, other = found[name], expected[name]
    # Differences of losses are as exact as losses of about 6 nats.
    error = 3e-7 if name in ("delta loss", "kl") else 0
    mean = pytest.approx(other.mean, rel=1e-6, abs=error)
    assert one.mean == mean, name
    assert one.stderr == pytest.approx(other.stderr, rel=1e-5), name
    assert one.n == other.n, name


@pytest.fixture(scope="module", name="measured")
def _base(lm, tmp_path_factory):
  """All sequences in one batch."""
  found = _measured(lm, tmp_path_factory.mktemp("base"), _tokens(), SEQUENCES)
  # Not trivially the same: the SAE is neither perfect nor without effect.
  assert 0.05 < found["fvu"].mean < 2 and 1 < found["l0"].mean < 20
  assert abs(found["delta loss"].mean) > 0.01 and found["kl"].mean > 0.01
  assert 0.5 < found["cosine"].mean < 0.99
  assert found["clean"].n == SEQUENCES
  return found


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_size_changes_nothing(lm, tmp_path, measured, batch):
  _same(_measured(lm, tmp_path, _tokens(), batch), measured)


def test_order_of_sequences_changes_nothing(lm, tmp_path, measured):
  order = np.random.default_rng(2).permutation(SEQUENCES)
  assert (order != np.arange(SEQUENCES)).any()
  _same(_measured(lm, tmp_path, _tokens()[order], SEQUENCES), measured)


def test_the_shift_and_rows_of_padding_change_nothing(lm, tmp_path, measured):
  padding = np.zeros((SEQUENCES, LENGTH), np.int32)
  padded = np.concatenate([_tokens(), padding])
  _same(_measured(lm, tmp_path, padded, SEQUENCES, shift=-0.2), measured)


def _pair(x, x_hat, keep, losses, batch=4):
  """Records of activations that are given, their numbers in float64."""
  clean, spliced = losses
  site = SiteRecord.of(x, keep, ~keep, x[0].mean(axis=0), clean, keep[:, :-1])
  splice = SpliceRecord(
    squared_error=np.square(x_hat - x).sum(axis=2),
    active=np.full(keep.shape, 3.0),
    norm=np.square(x_hat).sum(axis=2),
    dot=(x * x_hat).sum(axis=2),
    loss=spliced,
    kl=spliced,
    moments=np.zeros((1, 4, x.shape[2])),
  )
  return site, splice


@pytest.fixture(name="given")
def _given():
  rng = np.random.default_rng(3)
  x = rng.normal(size=(9, 14, 6)) * [20, 5, 1, 1, 0.3, 0.1] + 2
  x_hat = 0.8 * x + rng.normal(size=x.shape)
  keep = rng.random((9, 14)) < 0.8
  losses = rng.random((2, 9, 13)) * 3
  return x, x_hat, keep, losses


@pytest.mark.parametrize("scale", [0.01, 0.3, 30.0, 1000.0])
def test_units_change_nothing(given, scale):
  x, x_hat, *rest = given
  base = _metrics(*_pair(*given))
  found = _metrics(*_pair(scale * x, scale * x_hat, *rest))
  assert 0.02 < base["fvu"].mean < 0.5 and 0.5 < base["gamma"].mean < 0.95
  _same(found, base)
  # Scaled alone, a reconstruction is another one.
  alone = _metrics(*_pair(x, scale * x_hat, *rest))
  assert alone["fvu"].mean > 1.5 * base["fvu"].mean
  assert alone["gamma"].mean == pytest.approx(scale * base["gamma"].mean)
  assert alone["cosine"].mean == pytest.approx(base["cosine"].mean)


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_a_large_mean_does_not_change_fvu(given, scale):
  """Measured against E ||x||^2 it would be next to nothing."""
  x, x_hat, *rest = given
  base = _metrics(*_pair(*given))
  mean = 1e4 * np.array([1, -1, 0.5, 0, 2, 1])
  moved = _pair(scale * x + mean, scale * x_hat + mean, *rest)
  _same(_metrics(*moved), base, of=["fvu", "l0", "delta loss", "kl"])
  site, splice = moved
  if scale <= 1:
    naive = splice.squared_error.sum() / site.norm.sum()
    assert naive < 1e-4 * base["fvu"].mean
