"""Formats of other libraries: their files here, and ours there.

What they saved, with what they compute with it, is in `peers_files.zip`, so
these files are read without the libraries. That they load ours is tested where
PEERS_PYTHON names an interpreter that has them (see `peers.py`).
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import zipfile

import jax
import numpy as np
import pytest

from gemmascope_jax import releases, sae
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.releases import formats, identity
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

_HERE = pathlib.Path(__file__).parent
_FILES = _HERE / "peers_files.zip"
_NAMES = sorted(
  {name.split("/")[0] for name in zipfile.ZipFile(_FILES).namelist()}
)
_D, _M, _K = 8, 24, 4
_ROWS = 10**6


@pytest.fixture(scope="module", name="files")
def _files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("peers")
  zipfile.ZipFile(_FILES).extractall(folder)
  return folder


def _agree(found: SAE, outputs):
  latents = np.asarray(found.encode(outputs["x"]))
  np.testing.assert_array_equal(latents > 0, outputs["latents"] > 0)
  np.testing.assert_allclose(latents, outputs["latents"], rtol=1e-4, atol=1e-5)
  y = np.asarray(found(outputs["x"]))
  np.testing.assert_allclose(y, outputs["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in _NAMES if n != "circuit_tracer"])
def test_what_they_saved_computes_the_same_here(files, name):
  outputs = np.load(files / name / "outputs.npz")
  (files / name / "outputs.npz").rename(files / f"{name}.npz")
  if name.startswith("circuit_tracer_"):
    layer = int(name[-1])
    found = sae.load(files / "circuit_tracer", member=layer)
    sites = f"mlp_in.{layer}", f"mlp.{layer}"
  else:
    found = sae.load(files / name)
    sites = "res.3", None
  _agree(found, outputs)
  config = found.config
  if "transcoder" not in name:
    assert (config.site, config.target_site) == sites
  assert config.model == "somebody/tiny"
  assert config.details()["format"] == formats.recognise(
    files / ("circuit_tracer" if "circuit" in name else name)
  )
  family = {
    "standard": "relu",
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "training_batchtopk": "batch_topk",
    "BatchTopKSAE": "batch_topk",
    "topk": "topk",
    "AutoEncoderTopK": "topk",
    "GatedAutoEncoder": "gated",
    "training_gated": "gated",
    "0": "relu",
    "1": "jumprelu",
  }
  rest = name.removeprefix("saelens_").removeprefix("dictionary_learning_")
  rest = rest.removeprefix("circuit_tracer_")
  if rest in family:
    assert config.family == family[rest]
  assert config.k == (4 if config.family == "topk" else None)


def _sae(kind, site="res.2", seed=0) -> SAE:
  """An SAE whose pre-activations are exact, however they are summed.

  Weights are multiples of 1/8, inputs of 1/4, biases of 1/32, and so are
  pre-activations, below 2^8. Thresholds are such numbers too, and their
  neighbours among float32s: nothing but a threshold that was rounded, or a
  comparison that is another one, changes which latents are active.
  """
  rng = np.random.default_rng(seed)
  grid = lambda low, high, step, *shape: (
    rng.integers(low, high + 1, shape).astype(np.float32) / step
  )
  at = grid(16, 64, 32, _M)
  threshold = np.nextafter(at, np.choose(np.arange(_M) % 3, [0, 9, at]))
  skip = None
  target = None
  if kind in ("topk", "relu"):
    threshold = np.zeros(_M, np.float32)
  if "transcoder" in kind or kind == "relu":
    layer = site.partition(".")[2]
    site, target = f"mlp_in.{layer}", f"mlp.{layer}"
  if kind == "skip transcoder":
    skip = rng.normal(size=(_D, _D)).astype(np.float32)
  policy = TokenPolicy(excluded_ids=(0, 1, 2), pad_id=0)
  return SAE(
    Params(
      w_enc=grid(-4, 4, 8, _D, _M),
      b_enc=grid(-16, 16, 32, _M),
      w_dec=rng.normal(size=(_M, _D)).astype(np.float32),
      b_dec=grid(-16, 16, 4, _D),
      threshold=threshold.astype(np.float32),
      w_skip=skip,
    ),
    SAEConfig(
      family="topk" if kind == "topk" else "jumprelu",
      k=_K if kind == "topk" else None,
      site=site,
      target_site=target,
      model="gemma-tiny",
      token_policy=policy,
      provenance='{"rows": 7}',
    ),
  )


def _inputs(rows):
  x = np.random.default_rng(1).integers(-12, 13, (rows, _D))
  return x.astype(np.float32) / 4


# (format, kind) of everything that is written.
_WRITTEN = [
  ("gemma_scope", "sae"),
  ("gemma_scope", "topk"),
  ("gemma_scope", "skip transcoder"),
  ("gemma_scope_2", "sae"),
  ("gemma_scope_2", "gained transcoder"),
  ("saelens", "sae"),
  ("saelens", "attention"),
  ("saelens", "topk"),
  ("saelens", "transcoder"),
  ("saelens", "skip transcoder"),
  ("dictionary_learning", "sae"),
  ("dictionary_learning", "topk"),
  ("circuit_tracer", "transcoder"),
  ("circuit_tracer", "skip transcoder"),
]


def _make(kind) -> SAE:
  if kind == "attention":
    return _sae("sae", site="att.2")
  found = _sae(kind)
  if kind == "gained transcoder":
    config = dataclasses.replace(found.config, site="mlp_in_gain.2")
    return found.replace(config=config)
  return found


@pytest.mark.parametrize(("format", "kind"), _WRITTEN)
def test_what_is_written_is_read(tmp_path, format, kind):
  original = _make(kind)
  folder = releases.save(original, tmp_path / "a", format)
  assert formats.recognise(folder) == format
  found = sae.load(folder)
  assert found.config == original.config
  again = releases.save(found, tmp_path / "b", format)
  for file in folder.iterdir():
    assert file.read_bytes() == (again / file.name).read_bytes(), file.name
  # What other tools see: the format's own files alone.
  for card in folder.glob(f"*{identity.CARD}"):
    card.unlink()
  plain = sae.load(folder)
  for field, value in vars(original.params).items():
    np.testing.assert_array_equal(getattr(plain.params, field), value, field)
  if format != "gemma_scope":
    for field in ("site", "target_site", "model", "k"):
      assert getattr(plain.config, field) == getattr(original.config, field)


@pytest.fixture(scope="module", name="many")
def _many():
  """(x, which latents are active by float64) of 10^6 rows near thresholds."""
  x = _inputs(_ROWS)
  p = _sae("sae").params
  pre = x.astype(np.float64) @ p.w_enc + p.b_enc
  near = np.abs(pre - p.threshold) <= np.spacing(p.threshold)
  assert near.any(axis=1).sum() > 100_000
  rounded = p.threshold.astype(jax.numpy.bfloat16).astype(np.float64)
  assert ((pre > p.threshold) != (pre > rounded)).sum() > 10_000
  return x, pre > p.threshold


@pytest.mark.parametrize("format", releases.FORMATS)
def test_thresholds_are_never_rounded(tmp_path, many, format):
  x, expected = many
  original = _sae("sae")
  if format == "circuit_tracer":
    original = _sae("transcoder")
  if format == "gemma_scope_2":
    original = _make("sae")
  releases.save(original, tmp_path, format)
  found = sae.load(tmp_path)
  active = jax.jit(lambda sae, x: sae.encode(x) > 0)
  for rows in np.array_split(np.arange(_ROWS), 10):
    ours = active(found.replace(config=SAEConfig()), x[rows])
    np.testing.assert_array_equal(ours, expected[rows])


def _peers():
  """(interpreter, the libraries that it has)."""
  python = os.environ.get("PEERS_PYTHON")
  if not python:
    return None, []
  command = [python, str(_HERE / "peers.py"), "have", "."]
  found = subprocess.run(command, capture_output=True, text=True, check=True)
  return python, json.loads(found.stdout)


def test_they_load_what_is_written(tmp_path, many):
  python, libraries = _peers()
  if not libraries:
    pytest.skip(
      "PEERS_PYTHON names no interpreter with sae-lens, dictionary-learning or"
      " circuit-tracer"
    )
  own = [pair for pair in _WRITTEN if not pair[0].startswith("gemma_scope")]
  own = [pair for pair in own if pair[0] != "circuit_tracer"]
  written = {
    "layer_2/width_16k/npz": ("gemma_scope", "sae"),
    "npz_transcoder": ("gemma_scope", "transcoder"),
    "resid_post_layer_2": ("gemma_scope_2", "sae"),
    "transcoder_layer_2": ("gemma_scope_2", "gained transcoder"),
    **{f"{format}_{kind}": (format, kind) for format, kind in own},
  }
  # (library, folder, file in it): what each is asked to load.
  asked = [
    ("saelens_npz", "layer_2/width_16k/npz", ""),
    ("saelens_2", "resid_post_layer_2", ""),
    ("circuit_tracer_npz", "npz_transcoder", "/params.npz"),
    ("circuit_tracer_2", "transcoder_layer_2", "/params.safetensors"),
    *((format, f"{format}_{kind}", "") for format, kind in own),
  ]
  x, expected = many
  # Of equal latents our TopK keeps all, theirs some: no exact numbers for it.
  random = np.random.default_rng(2).normal(size=(64, _D)).astype(np.float32)
  given = {
    "many": x,
    "few": x[:64],
    "heads": x[:64].reshape(64, 2, _D // 2),
    "topk": random,
  }
  for name, value in given.items():
    np.save(tmp_path / f"{name}.npy", value)
  saes, requests = {}, []
  for name, (format, kind) in written.items():
    saes[name] = _make(kind)
    releases.save(saes[name], tmp_path / name, format)
  for library, name, file in asked:
    if library.partition("_npz")[0].removesuffix("_2") not in libraries:
      continue
    one = {"library": library, "path": name + file}
    kind = written[name][1]
    few = {"attention": "heads.npy", "topk": "topk.npy"}.get(kind, "few.npy")
    requests.append(one | {"x": few, "out": f"{name}.npz".replace("/", "-")})
    if kind in ("sae", "gained transcoder", "transcoder"):
      out = f"{library}-{name}.npy".replace("/", "-")
      requests.append(one | {"x": "many.npy", "out": out, "supports": True})
  layers = [_sae("relu", "res.0"), _sae("transcoder", "res.1", 1)]
  if "circuit_tracer" in libraries:
    for layer in layers:
      releases.save(layer, tmp_path / "layers", "circuit_tracer")
    requests.append(
      {"library": "circuit_tracer", "path": "layers", "x": "few.npy"}
      | {"out": "layers.npz"}
    )
  (tmp_path / "requests.json").write_text(json.dumps(requests))
  command = [python, str(_HERE / "peers.py"), "load", str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert not done.returncode, done.stderr[-3000:]
  for one in requests:
    if one.get("supports"):
      found = np.load(tmp_path / one["out"])
      found = np.unpackbits(found, count=expected.size).reshape(-1, _M)
      np.testing.assert_array_equal(found, expected)
      continue
    outputs = dict(np.load(tmp_path / one["out"]))
    if one["path"] == "layers":
      for index, layer in enumerate(layers):
        part = {key: value[index] for key, value in outputs.items()}
        _agree(layer, part | {"x": given["few"]})
      continue
    outputs["y"] = outputs["y"].reshape(64, _D)
    name = one["path"].removesuffix("/params.npz")
    name = name.removesuffix("/params.safetensors")
    x = given["topk" if one["x"] == "topk.npy" else "few"]
    _agree(saes[name], outputs | {"x": x})
