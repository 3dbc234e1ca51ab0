"""Gemma Scope's format: bytes, names, outputs, and files that are not it."""

import json
import pathlib

import numpy as np
import pytest

from gemmascope_jax import releases, sae
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig


def _sae(
  seed=0, width=6, latents=20, target_width=None, skip=False, **config
) -> SAE:
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  target_width = target_width or width
  return SAE(
    Params(
      w_enc=normal(width, latents),
      b_enc=normal(latents),
      w_dec=normal(latents, target_width),
      b_dec=normal(target_width),
      threshold=np.abs(normal(latents)) + 0.1,
      w_skip=normal(width, target_width) if skip else None,
    ),
    SAEConfig(
      model="gemma-tiny",
      token_policy=TokenPolicy(excluded_ids=(0, 1, 2), pad_id=0),
      provenance='{"rows": 7}',
      **{"site": "res.3"} | config,
    ),
  )


KINDS = {
  "sae": {},
  "transcoder": {
    "target_width": 4,
    "site": "mlp_in.3",
    "target_site": "att.3",
  },
  "skip transcoder": {
    "skip": True,
    "site": "mlp_in.3",
    "target_site": "mlp.3",
  },
  "crosscoder": {
    "site": "res.3+att.1+res.1",  # in the order of the columns
    "parts": (("res.3", 2), ("att.1", 3), ("res.1", 1)),
  },
}


def _rewrite(folder, **changes):
  """Google's kind of file: no card, and what `changes` says different."""
  file = folder / gemma_scope.ARRAYS
  arrays = dict(np.load(file)) | changes
  (folder / gemma_scope.CARD).unlink(missing_ok=True)
  np.savez(file, **{k: v for k, v in arrays.items() if v is not None})
  return folder


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_keeps_everything(tmp_path, kind):
  original = _sae(**KINDS[kind])
  folder = releases.save(original, tmp_path / "a")
  found = sae.load(folder)
  assert found.config == original.config
  for field in vars(original.params):
    np.testing.assert_array_equal(
      getattr(found.params, field), getattr(original.params, field)
    )
  again = releases.save(found, tmp_path / "b")
  for name in (gemma_scope.ARRAYS, gemma_scope.CARD):
    assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_cards_of_the_format_before_are_read(tmp_path):
  folder = releases.save(_sae(), tmp_path)
  card = json.loads((folder / gemma_scope.CARD).read_text())
  for name in ("target_site", "parts", "k"):
    del card[name]
  (folder / gemma_scope.CARD).write_text(json.dumps(card | {"format": 1}))
  assert sae.load(folder).config == _sae().config


def test_a_crosscoders_arrays_are_by_site(tmp_path):
  original = _sae(**KINDS["crosscoder"])
  folder = releases.save(original, tmp_path)
  with np.load(folder / gemma_scope.ARRAYS) as archive:
    found = dict(archive)
  assert len(found) == 3 * 3 + 2
  assert found["W_enc.att.1"].shape == (3, 20)
  np.testing.assert_array_equal(
    found["W_dec.att.1"], original.params.w_dec[:, 2:5]
  )
  np.testing.assert_array_equal(found["b_dec.res.1"], original.params.b_dec[5:])
  (folder / gemma_scope.CARD).unlink()
  with pytest.raises(
    ValueError, match="holds sites att.1, res.1, res.3, .* with its sae.json"
  ):
    sae.load(folder)


def test_a_skip_transcoder_adds_its_inputs(tmp_path):
  original = _sae(**KINDS["skip transcoder"])
  with np.load(releases.save(original, tmp_path) / "params.npz") as archive:
    skip = archive["affine_skip_connection"]
  x = np.random.default_rng(1).normal(size=(3, 5, 6)).astype(np.float32)
  f = original.encode(x)
  p = original.params
  expected = np.asarray(f) @ p.w_dec + p.b_dec + x @ skip
  np.testing.assert_allclose(original(x), expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(original.decode(f, x), original(x))
  with pytest.raises(ValueError, match=r"skip .* use sae\(x\), or sae.decode"):
    original.decode(f)


def test_keys_shapes_and_dtypes_are_the_released_ones(tmp_path):
  releases.save(_sae(), tmp_path)
  with np.load(tmp_path / "params.npz") as archive:
    found = {k: (v.shape, v.dtype.str) for k, v in archive.items()}
  assert found == {
    "W_enc": ((6, 20), "<f4"),
    "W_dec": ((20, 6), "<f4"),
    "b_enc": ((20,), "<f4"),
    "b_dec": ((6,), "<f4"),
    "threshold": ((20,), "<f4"),
  }


def test_outputs_are_the_tutorials(tmp_path):
  """The public tutorial's JumpReLU, written out in float64."""
  original = _sae()
  releases.save(original, tmp_path)
  p = {
    k: v.astype(np.float64) for k, v in np.load(tmp_path / "params.npz").items()
  }
  x = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
  pre = x @ p["W_enc"] + p["b_enc"]
  f = (pre > p["threshold"]) * np.maximum(pre, 0)
  loaded = sae.load(tmp_path)
  np.testing.assert_allclose(loaded.encode(x), f, rtol=1e-5, atol=1e-5)
  expected = f @ p["W_dec"] + p["b_dec"]
  np.testing.assert_allclose(loaded(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("width", "name"),
  [
    (2**12, "4k"),
    (2**14, "16k"),
    (2**15, "32k"),
    (2**16, "65k"),
    (2**17, "131k"),
    (2**18, "262k"),
    (2**19, "524k"),
    (2**20, "1m"),
  ],
)
def test_widths_are_named_as_released(width, name):
  assert gemma_scope.width_name(width) == name


def test_folders_are_named_by_the_measured_l0():
  found = gemma_scope.folder_name(20, 2**14, 70.6)
  assert found == "layer_20/width_16k/average_l0_71"


def test_googles_files_have_no_card_and_tell_their_site_by_their_path(tmp_path):
  folder = tmp_path / "gemma-scope-9b-it-res/layer_20/width_16k/average_l0_91"
  releases.save(_sae(width=3584), folder)
  config = sae.load(_rewrite(folder)).config
  assert (config.site, config.model) == ("res.20", "gemma-2-9b-it")
  assert config.token_policy is None
  name = "google/gemma-scope-9b-it-res/layer_20/width_16k/average_l0_91"
  assert config.details()["about"] == {"released_as": name}
  folder = (
    tmp_path / "gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_88"
  )
  releases.save(_sae(width=2304), folder)
  config = sae.load(_rewrite(folder)).config
  assert (config.site, config.target_site) == ("mlp_in.4", "mlp.4")
  plain = tmp_path / "plain"
  releases.save(_sae(), plain)
  assert sae.load(_rewrite(plain)).config == SAEConfig()


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"threshold": None}, "lacks threshold"),
    (
      {"W_dec": np.zeros((6, 20), "f4")},
      r"W_dec has shape \(6, 20\), expected",
    ),
    ({"W_enc": np.zeros((20, 6), "f4")}, "W_enc is .D, M., W_dec .M, E."),
    ({"W_dec": np.zeros(20, "f4")}, r"W_dec has shape \(20,\)"),
    (
      {"affine_skip_connection": np.zeros((5, 6), "f4")},
      r"affine_skip_connection has shape \(5, 6\), expected \(6, 6\)",
    ),
    ({"W_enc": np.zeros(3, "f4")}, r"W_enc has shape \(3,\)"),
    ({"b_enc": np.full(20, np.nan, "f4")}, "b_enc holds values that are not"),
    ({"threshold": np.full(20, -1, "f4")}, "threshold holds negative values"),
  ],
)
def test_files_that_are_not_an_sae_are_refused(tmp_path, changes, says):
  releases.save(_sae(), tmp_path)
  with pytest.raises(ValueError, match=says):
    sae.load(_rewrite(tmp_path, **changes))


def test_a_truncated_file_is_named(tmp_path):
  releases.save(_sae(), tmp_path)
  file = _rewrite(tmp_path) / "params.npz"
  file.write_bytes(file.read_bytes()[:-200])
  with pytest.raises(ValueError, match="params.npz is truncated"):
    sae.load(tmp_path)


def test_a_pickle_in_disguise_is_not_opened(tmp_path):
  np.save(
    tmp_path / "evil.npy", np.array([{"a": 1}], object), allow_pickle=True
  )
  (tmp_path / "evil.npy").rename(tmp_path / "params.npz")
  with pytest.raises(ValueError, match="params.npz"):
    sae.load(tmp_path)


def test_a_card_of_another_file_is_refused(tmp_path):
  releases.save(_sae(0), tmp_path / "a")
  releases.save(_sae(1), tmp_path / "b")
  (tmp_path / "b/params.npz").replace(tmp_path / "a/params.npz")
  with pytest.raises(ValueError, match="is not the file that .* describes"):
    sae.load(tmp_path / "a")


def test_a_card_of_a_newer_version_is_refused(tmp_path):
  releases.save(_sae(), tmp_path)
  card = tmp_path / gemma_scope.CARD
  card.write_text(json.dumps(json.loads(card.read_text()) | {"format": 99}))
  with pytest.raises(ValueError, match="format 99.*update"):
    sae.load(tmp_path)


def test_an_sae_writes_what_it_reads(tmp_path):
  wrong = _sae(target_width=4)
  with pytest.raises(ValueError, match=r"W_dec has shape \(20, 4\)"):
    releases.save(wrong, tmp_path)


def test_nothing_there_says_what_was_looked_for(tmp_path):
  with pytest.raises(FileNotFoundError, match="no SAE at .*params.npz"):
    sae.load(tmp_path)


def test_values_that_are_not_finite_are_not_written(tmp_path):
  bad = _sae()
  bad.params.b_dec[0] = np.inf
  with pytest.raises(ValueError, match="b_dec holds values that are not"):
    releases.save(bad, tmp_path)
  assert not list(pathlib.Path(tmp_path).iterdir())


def test_an_unknown_format_is_refused(tmp_path):
  with pytest.raises(ValueError, match="unknown release format 'onnx'; known"):
    releases.save(_sae(), tmp_path, format="onnx")


def test_activations_of_another_width_are_refused():
  with pytest.raises(ValueError, match="width 6, got 7: it was trained on"):
    _sae().encode(np.zeros((2, 7), np.float32))


def test_saelens_loads_the_file_with_equal_outputs(tmp_path, monkeypatch):
  """Through SAELens' own Gemma Scope loader; only the download is local."""
  sae_lens = pytest.importorskip("sae_lens", reason="sae-lens not installed")
  torch = pytest.importorskip("torch")
  from sae_lens.loading import pretrained_sae_loaders as loaders

  width, latents = 2304, 2**14  # the loader reads them off the names
  original = _sae(2, width=width, latents=latents)
  name = "layer_12/width_16k/average_l0_7"
  releases.save(original, tmp_path / name)

  def local(repo_id, filename, subfolder=None, **unused):
    return str(tmp_path / (subfolder or "") / filename)

  monkeypatch.setattr(loaders, "hf_hub_download", local)
  config, arrays, _ = loaders.gemma_2_sae_huggingface_loader(
    "google/gemma-scope-2b-pt-res", name, device="cpu"
  )
  assert config["d_sae"] == latents and config["architecture"] == "jumprelu"
  theirs = sae_lens.SAE.from_dict(
    {"reshape_activations": "none", "normalize_activations": "none"}
    | {key: value for key, value in config.items() if value is not None}
  )
  theirs.load_state_dict(arrays)
  x = np.random.default_rng(3).normal(size=(64, width)).astype(np.float32)
  expected = theirs.encode(torch.from_numpy(x)).detach().numpy()
  ours = sae.load(tmp_path / name)
  found = np.asarray(ours.encode(x))
  np.testing.assert_array_equal(found > 0, expected > 0)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    ours(x), theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-3, atol=1e-2
  )
