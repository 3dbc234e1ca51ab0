"""Gradients against autograd of Hugging Face's model, and r_L0 in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.gemma import GemmaConfig, sites
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies import attribution
from tests.data import tiny_gemma
from tests.gemma import conftest

SITES = ("res.0", "res.2", "mlp.1", "att.2", "att.0", "mlp_in.1")
CONFIG = dataclasses.replace(
  tiny_gemma.CONFIG, attn_softcap=2.0, final_softcap=3.0, num_kv_heads=2
)


def _pairs(ones, others, often):
  """All pairs; those that are not `often` tested are slow."""
  return [
    pytest.param(
      one, other, marks=() if often(one, other) else pytest.mark.slow
    )
    for one in ones
    for other in others
  ]


@pytest.fixture(scope="module")
def lm():
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype)
  return dataclasses.replace(
    tiny_gemma.lm(), config=CONFIG, params=jax.tree.map(draw, shapes)
  )


def _tokens(sequences=3, length=14):
  tokens = np.random.default_rng(1).integers(4, 200, (sequences, length))
  tokens[:, 0] = 2
  tokens[1, 10:] = 0  # padding
  return tokens.astype(np.int32)


def _gradient(lm, site, tokens, counted=None, **options):
  tokens = jnp.asarray(tokens)
  mask = tokens != 0
  before, x = attribution._activations(lm.config, site, lm.params, tokens, mask)
  if counted is None:
    counted = tiny_gemma.POLICY.keep_loss(tokens)
  options = dict(target="own", softcap=True) | options
  return np.asarray(
    attribution.gradient(
      lm.config, site, lm.params, tokens, mask, counted, before, x, **options
    )
  )


@pytest.mark.parametrize(
  ("site", "softcap"),
  _pairs(
    SITES, (True, False), lambda site, softcap: softcap or site == "res.0"
  ),
)
def test_own_gradients_are_those_of_one_logit_at_a_time(lm, site, softcap):
  tokens = _tokens()
  found = _gradient(lm, site, tokens, softcap=softcap)
  all_counted = np.asarray(tiny_gemma.POLICY.keep_loss(tokens))
  for t in (1, 2, 7, 12):
    only = np.zeros_like(all_counted)
    only[:, t] = all_counted[:, t]
    # All of the gradient of one logit, not a part of it.
    brute = _gradient(
      lm, site, tokens, jnp.asarray(only), target="all", softcap=softcap
    )
    np.testing.assert_allclose(found[:, t], brute[:, t], rtol=2e-4, atol=2e-6)
  assert np.abs(found).max() > 1e-3
  assert not found[:, -1].any() and not found[1, 10:].any()


def test_all_gradients_are_the_sum_over_later_logits(lm):
  tokens = _tokens()
  found = _gradient(lm, "res.0", tokens, target="all")
  counted = np.asarray(tiny_gemma.POLICY.keep_loss(tokens))
  total = 0
  for t in range(counted.shape[1]):
    only = np.zeros_like(counted)
    only[:, t] = counted[:, t]
    total += _gradient(lm, "res.0", tokens, jnp.asarray(only), target="all")
  np.testing.assert_allclose(found, total, rtol=1e-3, atol=1e-5)
  own = _gradient(lm, "res.0", tokens)
  assert np.abs(found - own).max() > 0.1 * np.abs(own).max()


def test_gradients_equal_central_differences(lm):
  tokens, site, t = _tokens(), "mlp.1", 6
  slope = _gradient(lm, site, tokens)[0, t]
  rng = np.random.default_rng(2)
  direction = rng.normal(size=slope.shape)
  direction /= np.linalg.norm(direction)

  @jax.jit
  def centred(size):
    moved = jnp.asarray(direction, jnp.float32)
    edit = lambda x: x.at[0, t].add(size * moved)
    out = gemma.forward(lm.config, lm.params, tokens[:1], edits={site: edit})
    return out.logits[0, t]

  def along(size):
    logits = np.asarray(centred(size), np.float64)
    return logits[tokens[0, t + 1]] - logits.mean()

  step = 0.02
  near, far = along(step) - along(-step), along(2 * step) - along(-2 * step)
  assert slope @ direction == pytest.approx(
    (8 * near - far) / (12 * step), rel=2e-3, abs=2e-4
  )


@pytest.mark.parametrize(
  ("kind", "case"),
  _pairs(
    ("res", "mlp", "att"),
    ("gemma2", "gemma3"),
    lambda kind, case: kind == "att" or (kind == "res") == (case == "gemma2"),
  ),
)
def test_gradients_equal_torch_autograd(case, kind):
  """Hugging Face's model, hooked where the site is; position by position."""
  import torch
  import transformers

  fields = conftest._COMMON | conftest._CASES[case]
  if fields["model_type"] == "gemma2":
    hf_config = transformers.Gemma2Config(**fields)
    cls = transformers.Gemma2ForCausalLM
  else:
    hf_config = transformers.Gemma3TextConfig(**fields)
    cls = transformers.Gemma3ForCausalLM
  model = cls._from_config(
    hf_config, attn_implementation="eager", dtype=torch.float32
  ).eval()
  generator = torch.Generator().manual_seed(7)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      size = 1.0 if "embed" in name else 0.3
      weight.normal_(0.0, size, generator=generator)
  layer, seen = 1, {}
  block = model.model.layers[layer]

  def keep(module, arguments, out):
    seen["x"] = out.requires_grad_() if torch.is_tensor(out) else out[0]
    seen["x"].retain_grad()

  def keep_input(module, arguments):
    arguments[0].retain_grad()
    seen["x"] = arguments[0]

  if kind == "att":
    block.self_attn.o_proj.register_forward_pre_hook(keep_input)
  else:
    place = block if kind == "res" else block.post_feedforward_layernorm
    place.register_forward_hook(keep)
  tokens = np.random.default_rng(3).integers(1, 61, (2, 9)).astype(np.int32)
  ids = torch.tensor(tokens).long()
  config = GemmaConfig.from_hf(hf_config.to_dict(), name="tiny")
  params = conftest._params(model)
  ours = {}
  mask = jnp.ones(tokens.shape, bool)
  site = f"{kind}.{layer}"
  before, x = attribution._activations(config, site, params, tokens, mask)
  for target in ("own", "all"):
    ours[target] = np.asarray(
      attribution.gradient(
        config,
        site,
        params,
        jnp.asarray(tokens),
        mask,
        jnp.ones((2, 8), bool),
        before,
        x,
        target=target,
        softcap=True,
      )
    )
  logits = model(ids, use_cache=False).logits
  right = logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
  centred = right - logits[:, :-1].mean(-1)
  scale = np.abs(ours["all"]).max()
  for t in (0, 3, 7):
    (slope,) = torch.autograd.grad(
      centred[:, t].sum(), seen["x"], retain_graph=True
    )
    np.testing.assert_allclose(
      ours["own"][:, t], slope.numpy()[:, t], atol=2e-5 * scale, rtol=1e-3
    )
  (slope,) = torch.autograd.grad(centred.sum(), seen["x"])
  np.testing.assert_allclose(
    ours["all"], slope.numpy(), atol=2e-5 * scale, rtol=1e-3
  )


def _direct(effects):
  """(exp S, ||y||_0) by the definition, float64."""
  effects = np.abs(np.asarray(effects, np.float64))
  p = effects[effects > 0] / effects.sum()
  return np.exp(-(p * np.log(p)).sum()), len(p)


@pytest.mark.parametrize("k", [1, 2, 7, 50])
def test_equal_effects_give_one_and_a_dominant_one_its_share(k):
  effects = np.zeros(64, np.float32)
  effects[:k] = np.where(np.arange(k) % 2, 3.0, -3.0)
  effective, count = attribution.effective_number(effects)
  assert count == k and effective / count == pytest.approx(1, rel=1e-6)
  effects[0] *= 1e7
  effective, count = attribution.effective_number(effects)
  assert effective / count == pytest.approx(1 / k, rel=1e-3)


def test_any_scale_of_the_logits_gives_the_same():
  effects = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
  effects[np.random.default_rng(1).random((5, 40)) < 0.5] = 0
  expected = [_direct(row) for row in effects]
  for scale in (1e-20, 1e-3, 1.0, 1e25):
    effective, count = attribution.effective_number(np.float32(scale) * effects)
    np.testing.assert_allclose(effective, [e for e, _ in expected], rtol=1e-5)
    assert list(count) == [n for _, n in expected]


def _sae(lm, site, seed=0, latents=40, **config):
  width = sites.site_width(lm.config, site)
  rng = np.random.default_rng(seed)
  w_dec = rng.normal(size=(latents, width)).astype(np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  params = Params(
    w_enc=w_dec.T * np.float32(0.3),
    b_enc=np.zeros(latents, np.float32),
    w_dec=w_dec,
    b_dec=np.zeros(width, np.float32),
    threshold=np.full(latents, 0.05, np.float32),
  )
  return SAE(params, SAEConfig(site=site, **config))


@pytest.mark.parametrize(
  ("site", "at"),
  _pairs(
    ("res.1", "mlp.1", "att.0"),
    ("x", "x_hat"),
    lambda site, at: site == "att.0" or (site == "res.1") == (at == "x"),
  ),
)
def test_sums_equal_a_direct_computation(lm, site, at):
  tokens, sae = _tokens(), _sae(lm, site)
  # A latent that is never active, and one that nothing reads.
  params = sae.params.replace(
    threshold=sae.params.threshold + np.where(np.arange(40) == 3, 1e9, 0),
    w_dec=sae.params.w_dec * (np.arange(40) != 5)[:, None],
  )
  sae = sae.replace(params=jax.tree.map(jnp.float32, params))
  found = attribution.batch_sums(
    lm, site, {"a": sae}, tokens, tiny_gemma.POLICY, at=at
  )
  keep = tiny_gemma.POLICY.keep(tokens)
  kept = tiny_gemma.POLICY.keep_loss(tokens)
  acts = gemma.forward(
    lm.config, lm.params, tokens, taps=(site,), mask=tokens != 0
  ).acts[site]
  edit = lambda x: jnp.where(keep[..., None], sae(x), x)

  def logits(shift, t):
    move = lambda x: (edit(x) if at == "x_hat" else x) + shift
    out = gemma.forward(
      lm.config, lm.params, tokens, edits={site: move}, mask=tokens != 0
    ).logits[:, t]
    right = jnp.take_along_axis(
      out, jnp.asarray(tokens)[:, t + 1, None], axis=1
    )[:, 0]
    return (right - out.mean(axis=1)).sum()

  slopes = jax.jit(jax.grad(logits))
  expected = {key: np.zeros(3) for key in attribution.SUMS}
  for t in range(13):
    slope = np.asarray(slopes(jnp.zeros_like(acts), t), np.float64)[:, t]
    latents = np.asarray(sae.encode(acts[:, t]), np.float64)
    effects = latents * (slope @ np.asarray(sae.params.w_dec, np.float64).T)
    for s in range(3):
      if not kept[s, t]:
        continue
      effective, count = _direct(effects[s]) if effects[s].any() else (0, 0)
      active = (latents[s] > 0).sum()
      for key, value in (
        ("count", 1),
        ("silent", active == 0),
        ("flat", active > 0 and count == 0),
        ("active", active),
        ("measured", count > 0),
        ("r", effective / count if count else 0),
        ("effective", effective),
      ):
        expected[key][s] += value
  assert expected["measured"].sum() > 20
  for key, value in expected.items():
    np.testing.assert_allclose(found[f"a|{key}"], value, rtol=1e-3, err_msg=key)


def test_planted_latents_give_the_uniformity_that_was_planted(lm):
  """k latents read and write the same, k others write as much but nothing.

  All k active latents have one direction, so one effect each: r_L0 = 1.
  """
  site, tokens = "res.1", _tokens()
  rng = np.random.default_rng(4)
  direction = rng.normal(size=12).astype(np.float32)
  for scales, expected in (([1, 1, 1, 1], 1.0), ([1e6, 1, 1, 1], 0.25)):
    params = Params(
      w_enc=np.zeros((12, 4), np.float32),
      b_enc=np.array(scales, np.float32),
      w_dec=np.tile(direction, (4, 1)),
      b_dec=np.zeros(12, np.float32),
      threshold=np.zeros(4, np.float32),
    )
    sums = attribution.batch_sums(
      lm, site, {"a": SAE(params)}, tokens, tiny_gemma.POLICY
    )
    r = sums["a|r"].sum() / sums["a|measured"].sum()
    assert r == pytest.approx(expected, rel=1e-4)
    assert sums["a|active"].sum() == 4 * sums["a|count"].sum()


def test_tokens_without_a_latent_are_not_counted(lm):
  tokens, sae = _tokens(), _sae(lm, "res.1")
  off = sae.replace(
    params=sae.params.replace(threshold=np.full(40, 1e9, np.float32))
  )
  flat = sae.replace(
    params=sae.params.replace(w_dec=np.zeros((40, 12), np.float32))
  )
  sums = attribution.batch_sums(
    lm, "res.1", {"off": off, "flat": flat}, tokens, tiny_gemma.POLICY
  )
  count = sums["off|count"]
  np.testing.assert_array_equal(sums["off|silent"], count)
  np.testing.assert_array_equal(sums["flat|flat"], count)
  for name in ("off", "flat"):
    assert not sums[f"{name}|measured"].any() and not sums[f"{name}|r"].any()
