"""Latents' descriptions against a brute-force look at every row."""

import dataclasses

import numpy as np
import pytest

from gemmascope_jax.data.stores.harvest import harvest
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies import latents
from tests.data import tiny_gemma


class Tokenizer(tiny_gemma.ByteTokenizer):
  def pieces(self, ids):
    return [f"<{i}>" for i in ids]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
  lm = dataclasses.replace(tiny_gemma.lm(), tokenizer=Tokenizer())
  store = harvest(
    lm,
    tiny_gemma.windows(),
    ("res.1", "att.1"),
    tmp_path_factory.mktemp("latents") / "store",
    tiny_gemma.POLICY,
    rows=700,
    progress=False,
  )
  return lm, store


def _sae(store, site, width=30, threshold=0.5):
  rng = np.random.default_rng(0)
  mean, norm = store.statistics(site)
  d = store.width(site)
  w_dec = rng.normal(size=(width, d)).astype(np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  scale = np.float32(np.sqrt(norm - np.square(mean).sum()) / np.sqrt(d))
  threshold = np.full(width, threshold, np.float32) * scale
  threshold[:5] = np.inf  # dead
  return SAE(
    Params(
      w_enc=w_dec.T.copy(),
      b_enc=(-mean.astype(np.float32) @ w_dec.T),
      w_dec=w_dec,
      b_dec=mean.astype(np.float32),
      threshold=threshold,
    ),
    SAEConfig(site=site),
  )


@pytest.mark.parametrize("site", ["res.1", "att.1"])
def test_everything_equals_a_brute_force_look(setting, site):
  lm, store = setting
  sae = _sae(store, site)
  found = latents.describe(
    lm, sae, store, latents=8, contexts=3, context_tokens=6, progress=False
  )
  values = np.asarray(sae.encode(store.read(site, 0, store.rows)))
  index = store.index(0, store.rows)
  assert found["tokens"]["alive"] == (values > 0).any(axis=0).sum() == 25
  frequencies = [each["frequency"] for each in found["latents"]]
  assert frequencies == sorted(frequencies, reverse=True)
  assert len(found["latents"]) == 8
  for each in found["latents"]:
    active = values[:, each["index"]]
    assert each["index"] >= 5
    assert each["frequency"] == (active > 0).mean()
    assert each["max"] == pytest.approx(active.max(), rel=1e-5)
    assert each["mean"] == pytest.approx(active[active > 0].mean(), rel=1e-5)
    assert 0 < each["frequency_stderr"] < 1
    assert sum(each["histogram"]["counts"]) == (active > 0).sum()
    best = {}
    for (window, _), value in zip(index, active, strict=True):
      best[window] = max(best.get(window, 0), value)
    strongest = sorted(best.values(), reverse=True)[:3]
    peaks = [c["values"][c["peak"]] for c in each["contexts"]]
    np.testing.assert_allclose(peaks, strongest, rtol=1e-3, atol=1e-4)
    for context in each["contexts"]:
      assert len(context["pieces"]) == len(context["values"]) == 6
      _check_context(store, index, active, context)
    quantiles = [c["quantile"] for c in each["quantile_contexts"]]
    peaks = [c["values"][c["peak"]] for c in each["quantile_contexts"]]
    assert quantiles == [0.1, 0.3, 0.5, 0.7, 0.9] and peaks == sorted(peaks)
    assert 0 < peaks[0] and peaks[-1] <= active.max() + 1e-4
    for context in each["quantile_contexts"]:
      _check_context(store, index, active, context)
    tokens = np.array([store.tokens[w][p] for w, p in index])
    means = {
      f"<{t}>": active[tokens == t].mean()
      for t in np.unique(tokens)
      if (tokens == t).sum() >= 4 and (active[tokens == t] > 0).any()
    }
    assert len(each["top_tokens"]) == min(8, len(means))
    strongest = sorted(means.values(), reverse=True)
    for (piece, mean), value in zip(
      each["top_tokens"], strongest, strict=False
    ):
      assert mean == pytest.approx(means[piece], abs=1e-4)
      assert mean == pytest.approx(value, abs=1e-4)


def test_a_topk_sae_shows_only_what_is_among_the_k(setting):
  lm, store = setting
  sae = _sae(store, "res.1", threshold=0.0)
  sae = sae.replace(config=SAEConfig(family="topk", k=2, site="res.1"))
  found = latents.describe(
    lm, sae, store, latents=6, contexts=2, progress=False
  )
  values = np.asarray(sae.encode(store.read("res.1", 0, store.rows)))
  for each in found["latents"]:
    active = values[:, each["index"]]
    assert sum(each["histogram"]["counts"]) == (active > 0).sum()
    assert each["max"] == pytest.approx(active.max(), rel=1e-5)
    for context in each["contexts"]:
      shown = [v for v in context["values"] if v > 0]
      kept = np.isclose(np.array(shown)[:, None], active[None, :], atol=1e-3)
      assert kept.any(axis=1).all()


def _check_context(store, index, active, context):
  """Tokens and activations belong together, at the place they came from."""
  window = context["window"]
  tokens = [f"<{i}>" for i in store.tokens[window]]
  starts = [
    start
    for start in range(len(tokens) - 5)
    if tokens[start : start + 6] == context["pieces"]
  ]
  rows = {
    int(position): value
    for (w, position), value in zip(index, active, strict=True)
    if w == window
  }
  expected = [[rows.get(start + i, 0) for i in range(6)] for start in starts]
  assert any(np.allclose(context["values"], e, atol=1e-3) for e in expected)


def test_logit_effects_are_the_directions_through_the_unembedding(setting):
  lm, store = setting
  sae = _sae(store, "res.1")
  found = latents.describe(
    lm, sae, store, latents=2, contexts=1, progress=False
  )
  gain = 1 + np.asarray(lm.params["final_norm"]["scale"])
  table = np.asarray(lm.params["embedder"]["embedding"])
  for each in found["latents"]:
    effect = table @ (sae.params.w_dec[each["index"]] * gain)
    effect = effect - effect.mean()
    best = effect.argmax()
    assert each["top_logits"][0][0] == f"<{best}>"
    assert each["top_logits"][0][1] == pytest.approx(effect[best], abs=1e-3)
    worst = effect.argmin()
    assert each["bottom_logits"][0][0] == f"<{worst}>"


def test_a_dead_sae_is_an_error(setting):
  lm, store = setting
  with pytest.raises(ValueError, match="no latent of the SAE at res.1 fired"):
    latents.describe(
      lm, _sae(store, "res.1", threshold=1e6), store, progress=False
    )
