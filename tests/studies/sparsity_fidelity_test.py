"""Splicing against a plain forward pass with whole logits, in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma, studies
from gemmascope_jax.data.policy import PolicyMismatchError, TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies import replacements, splice
from tests.data import tiny_gemma

POLICY = TokenPolicy.of(tiny_gemma.ByteTokenizer())
SITES = ("res.0", "res.2", "mlp.1", "att.2", "att.0", "mlp_in.1")


@pytest.fixture(scope="module")
def lm():
  return tiny_gemma.lm()


def _tokens(sequences=5, length=12, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(4, 200, (sequences, length)).astype(np.int32)
  tokens[:, 0] = 2
  tokens[1, 7] = 2  # BOS in mid-sequence
  tokens[2, 9:] = 0  # padding
  tokens[3, 5] = 1  # EOS
  return tokens


def _sae(lm, site, seed=0, latents=40, **config):
  width = sites.site_width(lm.config, site)
  rng = np.random.default_rng(seed)
  w_dec = rng.normal(size=(latents, width)).astype(np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  return SAE(
    Params(
      w_enc=w_dec.T * np.float32(0.3),
      b_enc=np.zeros(latents, np.float32),
      w_dec=w_dec,
      b_dec=rng.normal(size=width).astype(np.float32) * np.float32(0.1),
      threshold=np.full(latents, 0.05, np.float32),
    ),
    SAEConfig(site=site, **config),
  )


def _log_probs(lm, tokens, edits):
  """float64 [S, T, V], from whole logits."""
  out = gemma.forward(
    lm.config, lm.params, jnp.asarray(tokens), edits=edits, mask=tokens != 0
  )
  logits = np.asarray(out.logits, np.float64)
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _direct_losses(lm, tokens, edits):
  """Cross-entropy of every next token from whole logits, float64."""
  found = _log_probs(lm, tokens, edits)[:, :-1]
  chosen = np.take_along_axis(found, tokens[:, 1:, None].astype(int), -1)
  return -chosen[..., 0]


@pytest.mark.parametrize(
  ("site", "batch"), [(site, 5) for site in SITES] + [("mlp.1", 2)]
)
def test_metrics_equal_a_direct_computation(lm, site, batch):
  tokens, sae = _tokens(), _sae(lm, site)
  found = studies.fidelity(lm, {site: sae}, tokens, batch=batch)[site]
  keep = np.isin(tokens, (0, 1, 2), invert=True)
  counts = keep[:, :-1] & (tokens[:, 1:] != 0)
  edit = lambda x: jnp.where(keep[..., None], sae(x), x)
  zero = lambda x: jnp.where(keep[..., None], 0.0, x)
  clean = _direct_losses(lm, tokens, {})[counts]
  spliced = _direct_losses(lm, tokens, {site: edit})[counts]
  zeroed = _direct_losses(lm, tokens, {site: zero})[counts]
  acts = gemma.forward(
    lm.config, lm.params, jnp.asarray(tokens), taps=(site,), mask=tokens != 0
  ).acts[site]
  x = np.asarray(acts, np.float64)[keep]
  x_hat = np.asarray(sae(acts), np.float64)[keep]
  close = dict(rel=2e-4, abs=1e-6)
  assert found.loss_clean.mean == pytest.approx(clean.mean(), **close)
  assert found.loss_spliced.mean == pytest.approx(spliced.mean(), **close)
  assert found.loss_zero.mean == pytest.approx(zeroed.mean(), **close)
  delta = (spliced - clean).mean()
  assert found.delta_loss.mean == pytest.approx(delta, rel=1e-3, abs=1e-6)
  recovered = 1 - delta / (zeroed - clean).mean()
  assert found.loss_recovered.mean == pytest.approx(recovered, rel=1e-3)
  fvu = np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum()
  assert found.fvu.mean == pytest.approx(fvu, rel=1e-5)
  active = (np.asarray(sae.encode(acts)) > 0).sum(-1)[keep].mean()
  assert found.l0.mean == pytest.approx(active)
  assert 0 < found.l0.mean < 40 and found.delta_loss.n == 5
  p, q = (_log_probs(lm, tokens, edits)[:, :-1] for edits in ({}, {site: edit}))
  kl = (np.exp(p) * (p - q)).sum(-1)[counts].mean()
  assert found.kl.mean == pytest.approx(kl, rel=1e-3, abs=1e-6)
  size = np.linalg.norm(x, axis=1) * np.linalg.norm(x_hat, axis=1)
  assert found.cosine.mean == pytest.approx(((x * x_hat).sum(1) / size).mean())
  bias = np.square(x_hat).sum() / (x * x_hat).sum()
  assert found.bias.mean == pytest.approx(bias, rel=1e-5)


def test_a_perfect_replacement_costs_nothing(lm):
  class Same(replacements.Replacement):
    def reconstruct(self, x):
      return x, jnp.zeros(x.shape[:-1])

  for site in SITES:
    record, found = splice.run_batch(
      lm, site, {"same": Same()}, _tokens(), POLICY
    )
    assert found["same"].fvu(record).mean == 0
    assert abs(found["same"].delta_loss(record).mean) < 1e-6


def test_special_positions_can_be_spliced_too(lm):
  tokens, sae = _tokens(), _sae(lm, "res.0")
  _, found = splice.run_batch(
    lm,
    "res.0",
    {"sae": replacements.FromSAE(sae)},
    tokens,
    POLICY,
    splice_special=True,
  )
  real = (tokens != 0)[..., None]
  edit = lambda x: jnp.where(real, sae(x), x)
  direct = _direct_losses(lm, tokens, {"res.0": edit})
  predicted = (tokens != 0)[:, 1:]
  np.testing.assert_allclose(
    found["sae"].loss[predicted], direct[predicted], rtol=1e-4, atol=1e-5
  )


def test_a_transcoder_reads_another_site(lm):
  tokens = _tokens()
  keep = np.isin(tokens, (0, 1, 2), invert=True)
  sae = _sae(lm, "mlp_in.1")  # as wide as what it writes
  skip = np.random.default_rng(3).normal(size=(12, 12)).astype(np.float32)
  sae = sae.replace(params=sae.params.replace(w_skip=skip / 9))
  record, found = splice.run_batch(
    lm,
    "mlp.1",
    {"transcoder": replacements.FromSAE(sae, reads="mlp_in.1")},
    tokens,
    POLICY,
  )
  acts = gemma.forward(
    lm.config,
    lm.params,
    jnp.asarray(tokens),
    taps=("mlp_in.1", "mlp.1"),
    mask=tokens != 0,
  ).acts
  y_hat = sae(acts["mlp_in.1"])
  error = np.square(np.asarray(y_hat - acts["mlp.1"])).sum(-1)
  np.testing.assert_allclose(
    found["transcoder"].squared_error, error, rtol=1e-4
  )
  edit = lambda y: jnp.where(keep[..., None], y_hat, y)
  direct = _direct_losses(lm, tokens, {"mlp.1": edit})[record.keep_loss]
  loss = found["transcoder"].loss_spliced(record).mean
  assert loss == pytest.approx(direct.mean(), rel=2e-4)


def test_joint_splices_all_sites_at_once(lm):
  tokens = _tokens()
  saes = {site: _sae(lm, site) for site in ("res.0", "mlp.2")}
  alone = studies.fidelity(lm, saes, tokens)
  together = studies.fidelity(lm, saes, tokens, joint=True)
  keep = np.isin(tokens, (0, 1, 2), invert=True)
  counts = keep[:, :-1] & (tokens[:, 1:] != 0)

  def edit(sae):
    return lambda x: jnp.where(keep[..., None], sae(x), x)

  edits = {site: edit(sae) for site, sae in saes.items()}
  direct = _direct_losses(lm, tokens, edits)[counts].mean()
  for site in saes:
    assert together[site].loss_spliced.mean == pytest.approx(direct, rel=1e-4)
    assert together[site].fvu == alone[site].fvu
    assert together[site].delta_loss != alone[site].delta_loss
    assert together[site].kl is None and alone[site].kl is not None


def test_an_sae_of_another_place_is_refused(lm):
  tokens = _tokens()
  check = lambda site, sae: studies.fidelity(lm, {site: sae}, tokens)
  with pytest.raises(ValueError, match="trained at site res.0, not res.1"):
    check("res.1", _sae(lm, "res.0"))
  wide = dataclasses.replace(_sae(lm, "att.0").config, site=None)
  with pytest.raises(ValueError, match="width 16, but res.0 .* has width 12"):
    check("res.0", _sae(lm, "att.0").replace(config=wide))
  with pytest.raises(ValueError, match="gemma-tiny has layers 0..2"):
    check("res.3", _sae(lm, "res.0"))
  other = TokenPolicy(excluded_ids=(2,), pad_id=0)
  with pytest.raises(PolicyMismatchError, match="the SAE was made under"):
    check("res.0", _sae(lm, "res.0", token_policy=other))


@pytest.mark.parametrize(
  ("tokens", "says"),
  [
    (np.zeros(5, np.int32), r"shape \(5,\)"),
    (np.zeros((0, 5), np.int32), "at least one sequence"),
    (np.ones((2, 5)), "dtype float64"),
    (np.full((2, 5), 10**6), "another model"),
    (np.full((2, 5), 2), "no sequence has a token that counts"),
  ],
)
def test_tokens_that_make_no_sense_are_refused(lm, tokens, says):
  with pytest.raises(ValueError, match=says):
    studies.fidelity(lm, {"res.0": _sae(lm, "res.0")}, tokens)


def test_pca_is_the_best_linear_projection():
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3).astype("f4")
  mean = x.mean(0, dtype=np.float64)
  covariance = replacements.covariance(lambda a, b: x[a:b], 500, mean, block=64)
  np.testing.assert_allclose(covariance, np.cov(x.T, bias=True), rtol=1e-5)
  vectors, variances = replacements.principal_components(covariance)
  projection = replacements.Projection(
    jnp.asarray(mean, jnp.float32), jnp.asarray(vectors[:, :2], jnp.float32)
  )
  x_hat, active = projection.reconstruct(jnp.asarray(x))
  left = np.square(x - x_hat).sum() / np.square(x - mean).sum()
  assert left == pytest.approx(variances[2:].sum() / variances.sum(), rel=1e-4)
  assert np.isnan(active).all()


def test_the_untrained_sae_gets_the_l0_and_the_best_scale(lm):
  sae = _sae(lm, "res.0", latents=200)
  x = np.random.default_rng(1).normal(size=(300, 12)).astype(np.float32)
  matched = replacements.match_l0(sae, x, 17.0)
  assert (np.asarray(matched.encode(x)) > 0).sum(1).mean() == pytest.approx(17)
  error = lambda s: float(np.square(np.asarray(s(x)) - x).sum())
  for factor in (0.9, 1.1):
    params = matched.params.replace(w_dec=matched.params.w_dec * factor)
    assert error(matched) < error(matched.replace(params=params))
