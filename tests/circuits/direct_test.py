"""Direct attribution against sums, closed forms and real ablations."""

import dataclasses

import numpy as np
import pytest

from gemmascope_jax import circuits
from gemmascope_jax.sae.sae import SAE
from tests.circuits import tiny
from tests.gemma import slow_model

ANSWER, WRONG = 77, 130


@pytest.fixture(scope="module")
def lm():
  return tiny.lm()


def _acts(lm, edits=None):
  tokens = tiny.CLEAN[None]
  logits, acts = slow_model.forward(lm.config, lm.params, tokens, edits)
  return logits[0, -1], {name: x[0, -1] for name, x in acts.items()}


def _code(sae, x):
  p = sae.params
  pre = x @ p.w_enc.astype(np.float64) + p.b_enc
  return np.where(pre > p.threshold, np.maximum(pre, 0), 0)


def test_the_last_residual_stream_splits_into_the_whole_logit(lm):
  sae = tiny.sae("res.2")
  for wrong in (None, WRONG):
    found = circuits.direct(lm, sae, tiny.CLEAN, ANSWER, wrong)
    logits, acts = _acts(lm)
    logit = logits[ANSWER] - (0 if wrong is None else logits[wrong])
    assert found.logit == pytest.approx(logit, rel=1e-4)
    parts = found.effects.sum() + found.bias + found.error
    assert parts == pytest.approx(logit, rel=1e-4)
    assert abs(found.rest) < 1e-4 * np.abs(found.effects).sum()
    assert found.skip == pytest.approx(0, abs=1e-5)
  f = _code(sae, acts["res.2"])
  assert sorted(found.latents) == list(np.flatnonzero(f))
  np.testing.assert_allclose(found.activations, f[found.latents], rtol=1e-4)
  assert 3 < len(f.nonzero()[0]) < 20
  assert list(np.abs(found.effects)) == sorted(np.abs(found.effects))[::-1]
  capped = lambda logit: 3 * np.tanh(logit / 3)
  step = 1e-5
  slope = capped(logits[ANSWER] + step) - capped(logits[ANSWER] - step)
  assert found.slope == pytest.approx(slope / (2 * step), rel=1e-3)


@pytest.mark.parametrize("site", ["res.2", "res.0", "mlp.1", "att.1"])
def test_an_effect_is_the_ablation_with_the_norms_held(lm, site):
  """In closed form: the site's latent is taken out, nothing else answers."""
  sae = tiny.sae(site, seed=3)
  found = circuits.direct(lm, sae, tiny.CLEAN, ANSWER, WRONG)
  _, acts = _acts(lm)
  scale = lambda x, p: (
    (1 + p["scale"].astype(np.float64))
    / np.sqrt(np.square(x).mean() + lm.config.norm_eps)
  )
  final = scale(acts["res.2"], lm.params["final_norm"])
  table = lm.params["embedder"]["embedding"].astype(np.float64)
  layer = lm.params["layer_1"]
  w_o = layer["attn"]["o"].reshape(-1, lm.config.width).astype(np.float64)
  held = scale(acts["att.1"] @ w_o, layer["post_attention_norm"])

  def logit(x):
    """Of the stream in which the site's activation is x instead."""
    change = x - acts[site]
    if site == "att.1":
      change = change @ w_o * held
    hidden = (acts["res.2"] + change) * final
    return hidden @ (table[ANSWER] - table[WRONG])

  f = _code(sae, acts[site])
  for latent, effect in zip(found.latents, found.effects, strict=True):
    without = acts[site] - f[latent] * sae.params.w_dec[latent]
    real = logit(acts[site]) - logit(without)
    assert effect == pytest.approx(real, rel=2e-3, abs=1e-5)
  error = acts[site] - f @ sae.params.w_dec - sae.params.b_dec
  real = logit(acts[site]) - logit(acts[site] - error)
  assert found.error == pytest.approx(real, rel=1e-3, abs=1e-5)
  whole = logit(acts[site]) - logit(np.zeros_like(error))
  assert found.logit - found.rest == pytest.approx(whole, rel=1e-3, abs=1e-5)
  if site != "res.2":
    assert abs(found.rest) > 0.01


def test_a_skip_transcoder_writes_where_its_target_is(lm):
  sae = tiny.sae("mlp_in.1", seed=4, target_site="mlp.1")
  skip = np.random.default_rng(0).normal(0, 0.2, (12, 12)).astype(np.float32)
  sae = SAE(dataclasses.replace(sae.params, w_skip=skip), sae.config)
  found = circuits.direct(lm, sae, tiny.CLEAN, ANSWER, WRONG)
  plain = circuits.direct(lm, tiny.sae("mlp.1"), tiny.CLEAN, ANSWER, WRONG)
  assert found.site == "mlp.1" and abs(found.skip) > 1e-3
  assert found.rest == pytest.approx(plain.rest, rel=1e-4)


def test_what_latents_promote(lm):
  sae = tiny.sae("res.2")
  found = circuits.promoted(lm, "res.2", sae, [3, 0], 2)
  table = lm.params["embedder"]["embedding"]
  gain = 1 + lm.params["final_norm"]["scale"]
  order = np.argsort(-(sae.params.w_dec[[3, 0]] * gain @ table.T), axis=1)
  assert found == [[f"<{i}>" for i in row[:2]] for row in order]
  att = circuits.promoted(lm, "att.1", tiny.sae("att.1"), [0], 1)
  assert len(att[0]) == 1
  assert circuits.promoted(lm, "mlp_in.1", tiny.sae("mlp_in.1"), [0]) == [[]]


@pytest.mark.parametrize(
  "site, options, message",
  [
    ("mlp_in.1", {}, "mlp_in.1 writes into the MLP alone"),
    ("res.1", {"position": 6}, "position 6"),
    ("res.1", {"position": 0}, "the token policy excludes"),
    ("res.1", {"answer": 260}, "token 260: gemma-tiny has tokens 0..259"),
    ("res.1", {"site": "res.0"}, "trained at site res.1, not res.0"),
  ],
)
def test_what_has_no_direct_path_is_refused(lm, site, options, message):
  options = {"answer": ANSWER} | options
  with pytest.raises(ValueError, match=message):
    circuits.direct(lm, tiny.sae(site), tiny.CLEAN, **options)
