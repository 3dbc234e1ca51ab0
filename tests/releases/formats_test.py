"""What every format refuses, and how they are told apart."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec as P

from gemmascope_jax import parallel, releases, sae
from gemmascope_jax.releases import (
  archives,
  dictionary_learning,
  formats,
  identity,
  saelens,
  tensors,
  torch_file,
)
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from tests.digests import digests

D, M = 6, 20


def _sae(**config) -> SAE:
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return SAE(
    Params(
      w_enc=normal(D, M),
      b_enc=normal(M),
      w_dec=normal(M, D),
      b_dec=normal(D),
      threshold=np.abs(normal(M)),
    ),
    SAEConfig(**{"site": "res.3", "model": "gemma-tiny"} | config),
  )


def _transcoder(**config) -> SAE:
  return _sae(**{"site": "mlp_in.3", "target_site": "mlp.3"} | config)


def _make(format) -> SAE:
  return _transcoder() if format == "circuit_tracer" else _sae()


_FILE = {
  "gemma_scope": "params.npz",
  "gemma_scope_2": "params.safetensors",
  "saelens": "sae_weights.safetensors",
  "dictionary_learning": "ae.pt",
  "circuit_tracer": "layer_3.safetensors",
}
# What each format calls our threshold and encoder, and whether it turns it.
_KEYS = {
  "gemma_scope": ("threshold", "W_enc", "b_enc"),
  "gemma_scope_2": ("threshold", "w_enc", "b_enc"),
  "saelens": ("threshold", "W_enc", "b_enc"),
  "dictionary_learning": ("threshold", "W_enc", "b_enc"),
  "circuit_tracer": ("activation_function.threshold", "W_enc", "b_enc"),
}
each_format = pytest.mark.parametrize("format", releases.FORMATS)


def _arrays(file):
  if file.suffix == ".npz":
    return dict(np.load(file))
  if file.suffix == ".pt":
    return {k: np.array(v[...]) for k, v in torch_file.read(file).items()}
  return safetensors.numpy.load_file(file)


def _write(file, arrays):
  if file.suffix == ".npz":
    np.savez(file, **arrays)
  elif file.suffix == ".pt":
    torch_file.write(file, arrays)
  else:
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    safetensors.numpy.save_file(arrays, file)


def _changed(folder, format, change):
  """A folder of somebody else's, with other arrays."""
  releases.save(_make(format), folder, format)
  for card in folder.glob(f"*{identity.CARD}"):
    card.unlink()
  file = folder / _FILE[format]
  arrays = _arrays(file)
  change(arrays, *_KEYS[format])
  _write(file, arrays)
  return file


def _set(key_at, value):
  def change(arrays, *keys):
    arrays[keys[key_at]] = arrays[keys[key_at]].copy()
    arrays[keys[key_at]].flat[5] = value

  return change


def _turn(arrays, threshold, w_enc, b_enc):
  arrays[w_enc] = arrays[w_enc].T


def _drop(arrays, threshold, w_enc, b_enc):
  del arrays[b_enc]


_NAN = (_set(1, np.nan), "_enc holds values that are not finite")
_NEGATIVE = (_set(0, -0.5), "threshold holds negative values, the lowest -0.5")


@each_format
@pytest.mark.parametrize(
  ("change", "says", "mesh"),
  [
    (*_NAN, False),
    (*_NAN, True),
    (_set(0, np.inf), "threshold holds values that are not finite", False),
    (*_NEGATIVE, False),
    (*_NEGATIVE, True),
    (_turn, r"has shape .*(W_enc is \[D, M\], W_dec \[M, E\])", False),
    (_drop, "lacks b_enc|holds W_|holds .*, which is no", False),
  ],
)
def test_damaged_arrays_are_named(tmp_path, format, change, says, mesh):
  file = _changed(tmp_path, format, change)
  mesh = parallel.make_mesh({"model": 4}) if mesh else None
  with pytest.raises(ValueError, match=says) as caught:
    sae.load(tmp_path, mesh=mesh)
  assert file.name in str(caught.value)


@each_format
def test_files_cut_short_are_named(tmp_path, format):
  file = _changed(tmp_path, format, lambda *_: None)
  whole = file.read_bytes()
  for length in (len(whole) - 7, len(whole) // 2, 30):
    file.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=file.name):
      sae.load(tmp_path)


@each_format
def test_a_card_of_other_arrays_is_refused(tmp_path, format):
  releases.save(_make(format), tmp_path, format)
  file = tmp_path / _FILE[format]
  arrays = _arrays(file)
  key = _KEYS[format][2]
  _write(file, arrays | {key: arrays[key] + 1})
  with pytest.raises(ValueError, match=r"is not the file that .*sae.json desc"):
    sae.load(tmp_path)


@each_format
def test_a_mesh_gets_the_same_numbers(tmp_path, format):
  original = _make(format)
  releases.save(original, tmp_path / "a", format)
  mesh = parallel.make_mesh({"data": 2, "model": 4})
  found = sae.load(tmp_path / "a", mesh=mesh)
  assert found.params.w_enc.sharding.spec == P(None, "model")
  assert found.params.w_dec.sharding.spec[0] == "model"
  for field, value in vars(original.params).items():
    np.testing.assert_array_equal(getattr(found.params, field), value)
  releases.save(found, tmp_path / "b", format)  # and from it
  file = _FILE[format]
  assert (tmp_path / "a" / file).read_bytes() == (
    tmp_path / "b" / file
  ).read_bytes()


@each_format
def test_the_width_must_be_the_models(tmp_path, format):
  """No card of ours, and a model that is known: gemma-2-2b is 2304 wide."""
  original = _make(format)
  config = SAEConfig(**vars(original.config) | {"model": "gemma-2-2b"})
  folder = tmp_path / "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_9"
  releases.save(original.replace(config=config), folder, format)
  for card in folder.glob(f"*{identity.CARD}"):
    card.unlink()
  with pytest.raises(
    ValueError, match=r"width 6, but \w+.3 of gemma-2-2b is 2304 wide: the SAE"
  ):
    sae.load(folder)


class _Evil:
  """Unpickled, it would make a file."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("name", sorted(_FILE.values()))
def test_nothing_is_unpickled_whatever_it_is_called(tmp_path, name):
  mark = tmp_path / "mark"
  folder = tmp_path / "a"
  folder.mkdir()
  (folder / "cfg.json").write_text('{"architecture": "jumprelu"}')
  array = io.BytesIO()
  np.save(array, np.array([_Evil(mark)], object), allow_pickle=True)
  zipped = io.BytesIO()
  with zipfile.ZipFile(zipped, "w") as archive:
    archive.writestr("W_enc.npy", array.getvalue())
  for content in (
    pickle.dumps({"W_enc": _Evil(mark)}),
    pickle.dumps({"W_enc": _Evil(mark)}, 0),
    array.getvalue(),
    zipped.getvalue(),
  ):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
      sae.load(folder)
  assert not mark.exists()


def _zip(path, members):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members:
      archive.writestr(name, content)


@pytest.mark.parametrize("name", ["params.npz", "ae.pt"])
def test_archives_that_unpack_to_too_much_are_not_unpacked(tmp_path, name):
  entry = "a/data.pkl" if name == "ae.pt" else "W_enc.npy"
  _zip(tmp_path / name, [(entry, bytes(2**25))])
  assert (tmp_path / name).stat().st_size < 2**17
  with pytest.raises(ValueError, match="would unpack to 33554432, which weig"):
    sae.load(tmp_path)


@pytest.mark.parametrize(
  "entry", ["../x.npy", "/x.npy", "a/../../x.npy", "..\\x.npy", "\\x.npy"]
)
@pytest.mark.parametrize("name", ["params.npz", "ae.pt"])
def test_names_that_lead_out_are_refused(tmp_path, entry, name):
  _zip(tmp_path / name, [(entry, b"")])
  with pytest.raises(ValueError, match="leads out of the archive; not read"):
    sae.load(tmp_path)


def test_two_members_of_one_name_are_refused(tmp_path):
  with pytest.warns(UserWarning, match="Duplicate"):
    _zip(tmp_path / "params.npz", [("W_enc.npy", b""), ("W_enc.npy", b"")])
  with pytest.raises(ValueError, match="two members of one name"):
    archives.check(tmp_path / "params.npz")


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02"])
def test_a_headers_length_is_no_other_files_start(tmp_path, start):
  releases.save(_sae(), tmp_path, "gemma_scope_2")
  file = tmp_path / "params.safetensors"
  whole = file.read_bytes()
  length = int.from_bytes(whole[:8], "little")
  padded = int.from_bytes(start, "little")  # of spaces, which are allowed
  header = whole[8 : 8 + length].ljust(padded)
  file.write_bytes(padded.to_bytes(8, "little") + header + whole[8 + length :])
  (tmp_path / identity.CARD).unlink()
  assert file.read_bytes()[:2] == start
  assert formats.recognise(tmp_path) == "gemma_scope_2"
  np.testing.assert_array_equal(
    sae.load(tmp_path).params.w_dec, _sae().params.w_dec
  )


def test_other_safetensors_are_named(tmp_path):
  file = tmp_path / "model.safetensors"
  safetensors.numpy.save_file({"lm_head.weight": np.zeros(3, "f4")}, file)
  with pytest.raises(ValueError, match="holds lm_head.weight: no SAE in a for"):
    sae.load(tmp_path)
  safetensors.numpy.save_file({"w_enc": np.zeros(3, "i4")}, file)
  with pytest.raises(ValueError, match="w_enc is of type I32; expected one of"):
    tensors.read(file)


@pytest.mark.parametrize(
  ("format", "sae_", "says"),
  [
    ("gemma_scope_2", _sae(k=3), "JumpReLU alone, .* the 3 largest"),
    ("gemma_scope_2", _sae(site=None), "no name for the site of this SAE"),
    (
      *("gemma_scope_2", _transcoder()),
      r"with the norm's gain; convert with gs.releases.gain.with_gain",
    ),
    (
      *(
        "saelens",
        _sae(site="res.1+res.2", parts=(("res.1", 2), ("res.2", 4))),
      ),
      "no crosscoders",
    ),
    ("saelens", _sae(k=3), "topk has neither thresholds nor another target"),
    ("dictionary_learning", _sae(k=3), "AutoEncoderTopK has no thresholds"),
    ("dictionary_learning", _transcoder(), "SAEs that write what they read"),
    ("circuit_tracer", _sae(), "transcoders within one layer; .* of res.3 to"),
    (
      *("circuit_tracer", _transcoder(target_site="mlp.4")),
      "of mlp_in.3 to mlp.4",
    ),
  ],
)
def test_what_a_format_cannot_hold_is_not_written(tmp_path, format, sae_, says):
  with pytest.raises(ValueError, match=says):
    releases.check(sae_, format)
  with pytest.raises(ValueError, match=says):
    releases.save(sae_, tmp_path / "a", format)
  assert not (tmp_path / "a").exists()
  releases.check(sae_, "gemma_scope")


def test_what_is_there_is_not_written_over(tmp_path):
  """Somebody else's files, and another format's."""
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "notes.txt").write_text("mine")
  for format in ("dictionary_learning", "gemma_scope"):
    with pytest.raises(ValueError, match="holds config.json.* another folder"):
      releases.save(_sae(), tmp_path, format)
  assert (tmp_path / "config.json").read_text() == "{}"
  (tmp_path / "config.json").unlink()
  (tmp_path / "params.npz").write_bytes(b"somebody else's")
  with pytest.raises(ValueError, match="without the sae.json that is written"):
    releases.save(_sae(), tmp_path)
  assert (tmp_path / "params.npz").read_bytes() == b"somebody else's"
  (tmp_path / "params.npz").unlink()
  releases.save(_sae(), tmp_path)
  before = digests(tmp_path)
  for format in ("gemma_scope_2", "saelens", "dictionary_learning"):
    with pytest.raises(ValueError, match=f"holds params.npz, which '{format}'"):
      releases.save(_sae(), tmp_path, format)
  assert digests(tmp_path) == before
  releases.save(_sae(), tmp_path)  # the same again
  with pytest.raises(ValueError, match="is a file: expected a folder"):
    releases.save(_sae(), tmp_path / "notes.txt")


def test_a_folder_of_transcoders_is_of_one_model(tmp_path):
  releases.save(_transcoder(), tmp_path, "circuit_tracer")
  with pytest.raises(ValueError, match="describes other transcoders .*model"):
    releases.save(_transcoder(model="gemma-2-2b"), tmp_path, "circuit_tracer")
  second = _transcoder(site="mlp_in.4", target_site="mlp.4")
  releases.save(second, tmp_path, "circuit_tracer")
  with pytest.raises(ValueError, match="layers 3, 4: say which, as in .*=3"):
    sae.load(tmp_path)
  assert sae.load(tmp_path, member=4).config.site == "mlp_in.4"
  with pytest.raises(FileNotFoundError, match="layer_9.safetensors"):
    sae.load(tmp_path, member=9)


def _saelens(folder, **changes):
  releases.save(_sae(), folder, "saelens")
  (folder / identity.CARD).unlink()
  file = folder / saelens.CONFIG
  about = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({k: v for k, v in about.items() if v != ...}))
  return folder


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (
      {"architecture": "temporal"},
      "architecture is 'temporal', which is no JumpReLU or TopK; expected one",
    ),
    ({"architecture": None}, "architecture is None"),
    ({"metadata": None}, "metadata is None, expected a JSON object"),
    ({"metadata": []}, "metadata is .*, expected a JSON object"),
    ({"d_in": D + 1}, f"d_in is {D + 1}, but W_enc is .{D}, {M}\\]"),
    ({"d_sae": "20"}, f"d_sae is '20', but W_enc is .{D}, {M}."),
    (
      {"normalize_activations": "layer_norm"},
      "is 'layer_norm', which is computed from each activation",
    ),
    (
      {"normalize_activations": "expected_average_only_in"},
      "a factor that the folder does not hold; fold it in SAELens",
    ),
    ({"architecture": "topk", "k": None}, "k is None, expected a number"),
    ({"architecture": "gated"}, "lacks b_gate, b_mag, r_mag; it holds W_dec"),
    (
      {"metadata": ..., "activation_fn_str": "tanh-relu"},
      "activation_fn is 'tanh-relu'; of SAELens's we have relu and topk",
    ),
  ],
)
def test_saes_of_saelens_that_are_not_ours_are_named(tmp_path, changes, says):
  with pytest.raises(ValueError, match=says):
    sae.load(_saelens(tmp_path, **changes))


def test_complex_numbers_and_no_latents_are_refused(tmp_path):
  file = _changed(tmp_path / "a", "gemma_scope", lambda *_: None)
  arrays = _arrays(file)
  _write(file, arrays | {"W_dec": arrays["W_dec"] + 1j})
  with pytest.raises(ValueError, match="W_dec holds complex numbers: expected"):
    sae.load(tmp_path / "a")
  none = {"W_enc": 0, "b_enc": 0, "threshold": 0, "W_dec": 0}
  for key in none:
    none[key] = arrays[key][:, :0] if key == "W_enc" else arrays[key][:0]
  _write(file, arrays | none)
  with pytest.raises(ValueError, match=r"W_enc is \[6, 0\]: no latents, or no"):
    sae.load(tmp_path / "a")


@each_format
def test_a_member_of_a_single_sae_is_none(tmp_path, format):
  releases.save(_make(format), tmp_path, format)
  if format == "circuit_tracer":  # there it is the layer
    assert sae.load(tmp_path, member=3).config.site == "mlp_in.3"
    path = tmp_path / _FILE[format]
  else:
    path = tmp_path
  with pytest.raises(ValueError, match=r"member=7: .* a single SAE.*leave it"):
    sae.load(path, member=7)


def test_folders_of_saelens_before_6_are_read(tmp_path):
  about = {
    "metadata": ...,
    "hook_name": "blocks.7.hook_resid_pre",
    "model_name": "gemma-2b",
    "architecture": "jumprelu",
    "activation_fn_str": "relu",
    "normalize_activations": "none",
    "apply_b_dec_to_input": False,
  }
  found = sae.load(_saelens(tmp_path / "a", **about))
  assert (found.config.site, found.config.family) == ("res.6", "jumprelu")
  np.testing.assert_array_equal(found.params.b_enc, _sae().params.b_enc)
  topk = {"architecture": "standard", "activation_fn_str": "topk"}
  topk |= {"activation_fn_kwargs": {"k": 5}}
  found = sae.load(_saelens(tmp_path / "b", **about | topk))
  assert (found.config.k, found.config.family) == (5, "topk")
  assert not found.params.threshold.any()


def test_a_factor_after_the_threshold_is_refused(tmp_path):
  folder = _saelens(tmp_path)
  arrays = _arrays(folder / saelens.ARRAYS)
  arrays["finetuning_scaling_factor"] = np.ones(M, np.float32)
  _write(folder / saelens.ARRAYS, arrays)
  sae.load(folder)
  arrays["finetuning_scaling_factor"][3] = 2
  _write(folder / saelens.ARRAYS, arrays)
  with pytest.raises(ValueError, match="finetuning_scaling_factor is not 1 ev"):
    sae.load(folder)


def test_dictionaries_that_cannot_be_told_are_named(tmp_path):
  zeros = lambda *shape: np.zeros(shape, np.float32)
  keys = {
    "encoder.weight": zeros(M, D),
    "encoder.bias": zeros(M),
    "decoder.weight": zeros(D, M),
    "b_dec": zeros(D),
    "k": np.asarray(3, np.int32),
  }
  file = tmp_path / dictionary_learning.ARRAYS
  both = keys | {"threshold": np.asarray(-1, np.float32)}
  torch_file.write(file, both)
  with pytest.raises(ValueError, match="AutoEncoderTopK or BatchTopKSAE: its"):
    sae.load(tmp_path)
  about = tmp_path / dictionary_learning.CONFIG
  about.write_text('{"trainer": {"dict_class": "BatchTopKSAE"}}')
  with pytest.raises(ValueError, match="threshold is -1.0, so training ended"):
    sae.load(tmp_path)
  about.write_text('{"trainer": {"dict_class": "AutoEncoderTopK"}}')
  assert sae.load(tmp_path).config.k == 3
  about.write_text('{"trainer": {"dict_class": "CrossCoder"}}')
  with pytest.raises(ValueError, match="no CrossCoder that we know; expected"):
    sae.load(tmp_path)
