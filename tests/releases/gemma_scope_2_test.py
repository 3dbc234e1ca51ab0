"""Gemma Scope 2's files: equations, crosscoders, CLTs, and the norm's gain."""

import json

import numpy as np
import pytest
import safetensors.numpy

from gemmascope_jax import releases, sae
from gemmascope_jax.releases import (
  clt,
  gain,
  gemma_scope,
  gemma_scope_2,
  hooks,
  identity,
)
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from tests.data import tiny_gemma

D, M, LAYERS = 12, 10, 3


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _config(**changes):
  return {
    "architecture": "jump_relu",
    "type": "sae",
    "hf_hook_point_in": "model.layers.1.output",
    "hf_hook_point_out": "model.layers.1.output",
    "model_name": "gemma-v3-tiny-pt",
    "width": M,
    "l0": 20,
    "affine_connection": False,
  } | changes


def _one(folder, config=None, skip=False):
  """A folder of Google's: one SAE or transcoder."""
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {
    "w_enc": _normal(0, D, M),
    "w_dec": _normal(1, M, D),
    "b_enc": _normal(2, M),
    "b_dec": _normal(3, D),
    "threshold": np.abs(_normal(4, M)),
  }
  if skip:
    arrays["affine_skip_connection"] = _normal(5, D, D)
  safetensors.numpy.save_file(arrays, folder / "params.safetensors")
  if config is not None:
    (folder / "config.json").write_text(json.dumps(config))
  return arrays


def _many(folder, kind, skip=False):
  """A crosscoder of residual streams, or a CLT, of three layers."""
  folder.mkdir(parents=True, exist_ok=True)
  layers = []
  for k in range(LAYERS):
    seed = 10 * k
    w_dec = _normal(seed + 1, M, LAYERS, D)
    w_dec[:, :k] = 0  # earlier layers are not written
    arrays = {
      "w_enc": _normal(seed, D, M),
      "w_dec": w_dec,
      "b_enc": _normal(seed + 2, M),
      "b_dec": _normal(seed + 3, D),
      "threshold": np.abs(_normal(seed + 4, M)),
    }
    if skip:
      arrays["affine_skip_connection"] = _normal(seed + 5, D, D)
    file = folder / f"params_layer_{k}.safetensors"
    safetensors.numpy.save_file(arrays, file)
    layers.append(arrays)
  hooks_ = {
    "crosscoder": ["model.layers.{0,1,2}.output"] * 2,
    "clt": [
      "model.layers.{all}.pre_feedforward_layernorm.output",
      "model.layers.{all}.post_feedforward_layernorm.output",
    ],
  }[kind]
  about = _config(type=kind, hf_hook_point_in=hooks_[0])
  about["hf_hook_point_out"] = hooks_[1]
  (folder / "config.json").write_text(json.dumps(about))
  return layers


def _latents(x, arrays):
  """float64: JumpReLU of x W_enc + b_enc."""
  x = np.asarray(x, np.float64)
  pre = x @ arrays["w_enc"].astype(np.float64) + arrays["b_enc"]
  return np.where(pre > arrays["threshold"], pre, 0)


def _close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("skip", [False, True])
def test_outputs_are_the_formats(tmp_path, skip):
  arrays = _one(tmp_path, _config(affine_connection=skip), skip)
  found = sae.load(tmp_path)
  x = _normal(7, 5, D)
  f = _latents(x, arrays)
  y = f @ arrays["w_dec"] + arrays["b_dec"]
  if skip:
    y = y + x @ arrays["affine_skip_connection"]
  _close(found.encode(x), f)
  _close(found(x), y)
  assert (found.config.site, found.config.target_site) == ("res.1", None)
  assert found.config.model == "gemma-3-tiny-pt"
  assert found.config.details()["about"]["l0"] == 20


@pytest.mark.parametrize(
  ("reads", "writes", "site", "target"),
  [
    ("self_attn.o_proj.input", "self_attn.o_proj.input", "att.4", None),
    (
      *["post_feedforward_layernorm.output"] * 2,
      *("mlp.4", None),
    ),
    (
      *(
        "pre_feedforward_layernorm.output",
        "post_feedforward_layernorm.output",
      ),
      *("mlp_in_gain.4", "mlp.4"),
    ),
  ],
)
def test_hooks_are_sites(tmp_path, reads, writes, site, target):
  hook = lambda name: f"model.layers.4.{name}"
  config = _config(hf_hook_point_in=hook(reads), hf_hook_point_out=hook(writes))
  _one(tmp_path / "a", config)
  found = sae.load(tmp_path / "a")
  assert (found.config.site, found.config.target_site) == (site, target)
  gemma_scope_2.save(found, tmp_path / "b", l0=20)
  written = json.loads((tmp_path / "b/config.json").read_text())
  for key in ("hf_hook_point_in", "hf_hook_point_out", "width", "l0"):
    assert written[key] == config[key]
  assert written["type"] == ("sae" if target is None else "transcoder")


def test_without_a_config_the_path_tells(tmp_path):
  place = "gemma-scope-2-270m-it/transcoder_all/layer_3_width_16k_l0_small"
  arrays = _one(tmp_path / place)
  wide = {"w_enc": _normal(0, 640, M), "w_dec": _normal(1, M, 640)}
  arrays |= wide | {"b_dec": _normal(2, 640)}
  file = tmp_path / place / "params.safetensors"
  safetensors.numpy.save_file(arrays, file)
  config = sae.load(tmp_path / place).config
  assert (config.site, config.target_site) == ("mlp_in_gain.3", "mlp.3")
  assert config.model == "gemma-3-270m-it"
  _one(tmp_path / "plain")
  assert sae.load(tmp_path / "plain").config == SAEConfig()


@pytest.mark.parametrize("architecture", ["topk", None, "jumprelu"])
def test_other_architectures_are_named(tmp_path, architecture):
  _one(tmp_path, _config(architecture=architecture))
  with pytest.raises(
    ValueError, match=f"architecture is {architecture!r}; exp"
  ):
    sae.load(tmp_path)


def test_a_crosscoder_is_its_layers_together(tmp_path):
  layers = _many(tmp_path / "a", "crosscoder")
  found = sae.load(tmp_path / "a")
  assert found.config.site == "res.0+res.1+res.2"
  assert found.config.parts == (("res.0", D), ("res.1", D), ("res.2", D))
  x = _normal(99, 4, LAYERS, D)
  f = [_latents(x[:, k], layers[k]) for k in range(LAYERS)]
  y = [
    sum(f[k] @ layers[k]["w_dec"][:, j] for k in range(j + 1))
    + layers[j]["b_dec"]
    for j in range(LAYERS)
  ]
  flat = x.reshape(4, LAYERS * D)
  _close(found.encode(flat), np.concatenate(f, axis=1))
  _close(found(flat), np.concatenate(y, axis=1))
  # And back: the same numbers in the same files.
  releases.save(found, tmp_path / "b", "gemma_scope_2")
  for k, arrays in enumerate(layers):
    file = tmp_path / f"b/params_layer_{k}.safetensors"
    again = safetensors.numpy.load_file(file)
    for name, value in arrays.items():
      np.testing.assert_array_equal(again[name], value)
  assert sae.load(tmp_path / "b").config == found.config
  # Only crosscoders that write what comes later have such files.
  w_enc = np.array(found.params.w_enc)
  w_enc[0, -1] = 1
  other = found.replace(params=found.params.replace(w_enc=w_enc))
  with pytest.raises(ValueError, match="latents 20 to 29 do not read res.2 al"):
    releases.save(other, tmp_path / "c", "gemma_scope_2")
  assert not (tmp_path / "c").exists()
  releases.save(other, tmp_path / "c", "gemma_scope")


@pytest.mark.parametrize("skip", [False, True])
def test_a_clt_writes_its_layer_and_later_ones(tmp_path, skip):
  layers = _many(tmp_path, "clt", skip)
  found = clt.open(tmp_path)
  assert (found.width, found.model) == (LAYERS * M, "gemma-3-tiny-pt")
  x = _normal(98, LAYERS, 4, D)
  f = {k: _latents(x[k], layers[k]) for k in range(LAYERS)}
  for k in range(LAYERS):
    _close(found.encode(k, x[k]), f[k])
  for j in range(LAYERS):
    y = sum(f[k] @ layers[k]["w_dec"][:, j] for k in range(j + 1))
    y = y + layers[j]["b_dec"]
    if skip:
      y = y + x[j] @ layers[j]["affine_skip_connection"]
    f32 = {k: v.astype(np.float32) for k, v in f.items()}
    _close(found.decode(j, f32, x[j]), y)
  one = sae.load(tmp_path, member=1)
  assert (one.config.site, one.config.target_site) == ("mlp_in_gain.1", "mlp.1")
  np.testing.assert_array_equal(one.params.w_dec, layers[1]["w_dec"][:, 1])
  with pytest.raises(ValueError, match="no single SAE is: .*clt.open"):
    sae.load(tmp_path)
  with pytest.raises(ValueError, match=r"the latents of \[1\] are not given"):
    found.decode(1, {0: f32[0]})
  with pytest.raises(ValueError, match=r"layer 3: this CLT has layers 0..2"):
    found.layer(3)
  if skip:
    with pytest.raises(ValueError, match="give x, the layer's own input"):
      found.decode(0, f32)


def test_layers_that_are_not_all_there_are_named(tmp_path):
  _many(tmp_path, "clt")
  file = tmp_path / "params_layer_2.safetensors"
  file.rename(tmp_path / "params_layer_3.safetensors")
  with pytest.raises(ValueError, match="lacks params_layer_2.safetensors: fet"):
    clt.open(tmp_path)
  (tmp_path / "params_layer_3.safetensors").unlink()
  with pytest.raises(
    ValueError, match=r"w_dec has shape \(10, 3, 12\), expect"
  ):
    clt.open(tmp_path)
  with pytest.raises(ValueError, match="one layer of a crosscoder or cross-la"):
    sae.load(tmp_path / "params_layer_1.safetensors")
  (tmp_path / "config.json").unlink()
  with pytest.raises(ValueError, match="w_dec has shape|of unknown type"):
    sae.load(tmp_path)


@pytest.fixture(scope="module", name="lm")
def _lm():
  """A tiny Gemma whose norms have gains that are not 1."""
  lm = tiny_gemma.lm()
  for layer in range(lm.config.num_layers):
    norm = lm.params[f"layer_{layer}"]["pre_mlp_norm"]
    norm["scale"] = _normal(layer, lm.config.width)
  return lm


def test_the_gain_moves_into_the_encoder(lm):
  width = lm.config.width
  params = Params(
    w_enc=_normal(0, width, M),
    b_enc=_normal(1, M),
    w_dec=_normal(2, M, width),
    b_dec=_normal(3, width),
    threshold=np.abs(_normal(4, M)),
    w_skip=_normal(5, width, width),
  )
  config = SAEConfig(site="mlp_in_gain.1", target_site="mlp.1")
  released = SAE(params, config)
  plain = gain.without(released, lm)
  assert plain.config.site == "mlp_in.1"
  x = _normal(8, 6, width).astype(np.float64)
  gained = x * (1 + np.asarray(lm.params["layer_1"]["pre_mlp_norm"]["scale"]))
  gained = gained.astype(np.float32)
  _close(plain.encode(x.astype(np.float32)), released.encode(gained))
  _close(plain(x.astype(np.float32)), released(gained))
  back = gain.with_gain(plain, lm)
  assert back.config == released.config
  for field, value in vars(released.params).items():
    np.testing.assert_allclose(getattr(back.params, field), value, rtol=1e-6)


def test_what_has_no_gain_to_move_is_said(lm):
  other = SAE(
    Params(*[_normal(0, *s) for s in ((5, M), (M,), (M, 5), (5,), (M,))]),
    SAEConfig(site="mlp_in_gain.1", target_site="mlp.1", model="gemma-3-1b"),
  )
  with pytest.raises(ValueError, match="of width 5, but .* of width 12: load"):
    gain.without(other, lm)
  with pytest.raises(ValueError, match="at mlp_in_gain.1 does not read mlp_in"):
    gain.with_gain(other, lm)


def test_an_embedding_sae_reads_what_the_first_block_reads(tmp_path):
  place = "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
  width = 2304
  original = SAE(
    Params(
      w_enc=_normal(0, width, M) / 48,
      b_enc=_normal(1, M),
      w_dec=_normal(2, M, width),
      b_dec=_normal(3, width),
      threshold=np.abs(_normal(4, M)),
    )
  )
  releases.save(original, tmp_path / place)
  (tmp_path / place / identity.CARD).unlink()
  found = sae.load(tmp_path / place)
  assert found.config.site == "embedding"
  scaled = gemma_scope.scaled_embedding(found)
  e = _normal(6, 5, width)
  s = np.float32(np.sqrt(width))
  _close(scaled.encode(s * e), found.encode(e))
  _close(scaled(s * e) / s, found(e))
  assert scaled.config.site is None
  with pytest.raises(ValueError, match="is not one of the embedding: expected"):
    gemma_scope.scaled_embedding(scaled)


def test_models_are_named_as_the_hub_names_them():
  for label, name in (
    ("gemma-3-1b", "google/gemma-3-1b-pt"),
    ("gemma-3-270m", "google/gemma-3-270m"),
    ("gemma-2-2b-it", "google/gemma-2-2b-it"),
  ):
    assert hooks.model_id(label) == name
    assert hooks.model_label(name) == label
  assert hooks.model_label("gemma-v3-1b-pt") == "gemma-3-1b"
  assert hooks.model_label("gpt2") == "gpt2"
  assert hooks.model_label(None) is None
  for site in ("res.0", "mlp.12", "att.3", "mlp_in.7", "mlp_in_gain.7"):
    hook = hooks.transformer_lens(site)
    assert hooks.site_of_transformer_lens(hook) == site
    theirs = hooks.hugging_face(site)
    assert theirs is None or hooks.site_of_hugging_face(theirs) == site
  assert hooks.site_of_transformer_lens("blocks.0.hook_resid_pre") is None
