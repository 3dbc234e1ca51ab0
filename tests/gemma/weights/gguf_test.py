"""GGUF files, written by the gguf package and read by us."""

import struct
import sys

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_files
from tiny_files import CONFIG, VOCAB

from gemmascope_jax import gemma
from gemmascope_jax.gemma.weights import gguf as ours
from gemmascope_jax.gemma.weights import gguf_header, layout
from gemmascope_jax.gemma.weights.errors import (
  TokenizerNotFoundError,
  WeightsFormatError,
)

Kind = gguf.GGMLQuantizationType


def _gguf_tensors(params):
  """As llama.cpp converts them: its names, and norms as gains."""
  return {
    tiny_files.gguf_name(name): np.ascontiguousarray(
      x + 1 if name.endswith("norm.weight") else x
    )
    for name, x in tiny_files.hf_tensors(params).items()
  }


def _vocabulary():
  """Characters, bytes, runs of spaces and a turn marker."""
  words = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "  "]
  types = [3, 3, 3, 2, 3, 4]
  words += [f"<0x{byte:02X}>" for byte in range(256)]
  types += [6] * 256
  words += ["▁", "▁a", "ab"] + [chr(ord("a") + i) for i in range(26)]
  words += [f"unused{i}" for i in range(VOCAB - len(words))]
  types += [1] * (VOCAB - len(types))
  scores = [-float(i) for i in range(VOCAB)]
  return words, scores, types


def _write(path, params, arch="gemma3", kinds=lambda name: Kind.F32, **other):
  writer = gguf.GGUFWriter(str(path), arch)
  writer.add_block_count(CONFIG.num_layers)
  writer.add_context_length(CONFIG.context)
  writer.add_embedding_length(CONFIG.width)
  writer.add_feed_forward_length(CONFIG.mlp_width)
  writer.add_head_count(CONFIG.num_heads)
  writer.add_head_count_kv(CONFIG.num_kv_heads)
  writer.add_key_length(CONFIG.head_dim)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_sliding_window(CONFIG.window)
  for name, value in other.items():
    getattr(writer, f"add_{name}")(value)
  words, scores, types = _vocabulary()
  writer.add_tokenizer_model("llama")
  writer.add_token_list(words)
  writer.add_token_scores(scores)
  writer.add_token_types(types)
  writer.add_bos_token_id(2)
  writer.add_eos_token_id(1)
  writer.add_unk_token_id(3)
  writer.add_pad_token_id(0)
  writer.add_add_space_prefix(False)
  for name, x in _gguf_tensors(params).items():
    kind = kinds(name) if x.ndim == 2 else Kind.F32
    data = gguf.quants.quantize(x, kind)
    writer.add_tensor(name, data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _read(path, num_layers=CONFIG.num_layers):
  weights = ours.open_file(path)
  return layout.read_params(
    weights.config,
    weights.find,
    num_layers=num_layers,
    dtype=jnp.float32,
    mesh=None,
  )


def test_header_equals_that_of_the_gguf_package(tmp_path, params):
  path = _write(tmp_path / "tiny.gguf", params)
  header = gguf_header.read_header(path)
  reader = gguf.GGUFReader(path)
  theirs = {
    key: field.contents()
    for key, field in reader.fields.items()
    if not key.startswith("GGUF.")
  }
  assert set(header.metadata) == set(theirs)
  for key, value in theirs.items():
    assert list(np.atleast_1d(header.metadata[key])) == list(
      np.atleast_1d(value)
    ), key
  assert {
    tensor.name: (tuple(map(int, tensor.shape[::-1])), int(tensor.data_offset))
    for tensor in reader.tensors
  } == {
    name: (info.shape, header.start + info.offset)
    for name, info in header.tensors.items()
  }


def test_float32_files_give_the_weights(tmp_path, params):
  path = _write(tmp_path / "tiny.gguf", params, file_type=0)
  read = _read(path)
  norms = lambda tree: {
    path: leaf
    for path, leaf in layout.flatten(tree)
    if path.endswith("norm/scale")
  }
  for name, scale in norms(read).items():
    # 1 + scale was rounded when the file was written.
    np.testing.assert_allclose(scale, norms(params)[name], atol=2e-7)
  for name, leaf in layout.flatten(read):
    if name not in norms(read):
      expected = dict(layout.flatten(params))[name]
      np.testing.assert_array_equal(leaf, expected)
  assert ours.open_file(path).label == "gemma3_text (F32)"
  some = _read(path, num_layers=2)
  assert sorted(some) == ["embedder", "final_norm", "layer_0", "layer_1"]


def test_quantised_files_are_dequantised_piecewise_as_by_the_gguf_package(
  tmp_path, params, monkeypatch
):
  # Five rows at a time, so that pieces and the odd last one both occur.
  monkeypatch.setattr(ours, "_PIECE", 5 * CONFIG.width)
  kinds = lambda name: Kind.Q8_0 if "embd" in name else Kind.Q5_0
  # Blocks are of 32: only the matrices with such rows are quantised.
  fits = lambda name: Kind.F16 if "output" in name else kinds(name)
  path = _write(tmp_path / "t.gguf", params, kinds=fits, file_type=15)
  weights = ours.open_file(path)
  assert weights.label == "gemma3_text (Q4_K_M, dequantised)"
  read = _read(path)
  theirs = {
    tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    for tensor in gguf.GGUFReader(path).tensors
  }
  np.testing.assert_array_equal(
    read["embedder"]["embedding"], theirs["token_embd.weight"]
  )
  np.testing.assert_array_equal(
    read["layer_2"]["mlp"]["up"], theirs["blk.2.ffn_up.weight"].T
  )
  np.testing.assert_array_equal(
    read["layer_1"]["attn"]["o"].reshape(40, 64),
    theirs["blk.1.attn_output.weight"].T,
  )
  error = np.abs(read["layer_2"]["mlp"]["up"] - params["layer_2"]["mlp"]["up"])
  assert 0 < error.max() < 0.1


def test_architecture_of_gemma_3(tmp_path, params):
  path = _write(
    tmp_path / "tiny.gguf",
    params,
    rope_freq_base=500.0,
    rope_scaling_type=gguf.RopeScalingType.LINEAR,
    rope_scaling_factor=8.0,
  )
  weights = ours.open_file(path)
  assert weights.config == gemma.GemmaConfig(
    name="gemma3_text",
    vocab_size=VOCAB,
    width=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    mlp_width=96,
    query_pre_attn_scalar=10,
    layer_pattern=("local",),
    window=5,
    qk_norm=True,
    rope_base_local=10_000.0,
    rope_base_global=500.0,
    rope_factor_global=8.0,
    norm_eps=1e-6,
    context=32,
  )
  assert weights.bos_id == 2


def test_architecture_of_gemma_2(tmp_path, params):
  path = _write(
    tmp_path / "tiny.gguf",
    params,
    arch="gemma2",
    attn_logit_softcapping=7.5,
    final_logit_softcapping=3.0,
  )
  config = ours.open_file(path).config
  assert (config.attn_softcap, config.final_softcap) == (7.5, 3.0)
  assert config.layer_pattern == ("local", "global")
  assert not config.qk_norm
  # Without QK-norm its tensors are not looked for.
  assert "q_norm" not in _read(path)["layer_0"]["attn"]


def test_published_models_are_known_by_their_size():
  for config in gemma.PRESETS.values():
    family = "gemma3" if config.qk_norm else "gemma2"
    fields = {
      "attention.key_length": config.head_dim,
      "embedding_length": config.width,
      "block_count": config.num_layers,
      "attention.head_count": config.num_heads,
      "attention.head_count_kv": config.num_kv_heads,
      "feed_forward_length": config.mlp_width,
      "attention.sliding_window": config.window,
      "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
      "context_length": config.context,
      "rope.scaling.type": "linear",
      "rope.scaling.factor": config.rope_factor_global,
    }
    metadata = {f"{family}.{key}": value for key, value in fields.items()}
    metadata["general.architecture"] = family
    if config.name.endswith("-it"):
      metadata["general.finetune"] = "it"
    embedding = gguf_header.TensorInfo(
      (config.vocab_size, config.width), Kind.F32, 0
    )
    header = gguf_header.Header(
      "path", metadata, {"token_embd.weight": embedding}, 0
    )
    assert ours._config(header) == config


def test_another_architecture_is_refused(tmp_path, params):
  path = _write(tmp_path / "tiny.gguf", params, arch="llama")
  with pytest.raises(WeightsFormatError, match="architecture is 'llama', exp"):
    ours.open_file(path)


def test_a_missing_tensor_is_named(tmp_path, params):
  params = {key: value for key, value in params.items() if key != "layer_2"}
  path = _write(tmp_path / "tiny.gguf", params)
  with pytest.raises(WeightsFormatError, match="tensor blk.2.attn_q.weight is"):
    _read(path)


def test_missing_metadata_is_named(tmp_path, params, monkeypatch):
  monkeypatch.setattr(gguf.GGUFWriter, "add_key_length", lambda self, x: None)
  path = _write(tmp_path / "tiny.gguf", params)
  with pytest.raises(
    WeightsFormatError, match="gemma3.attention.key_length is"
  ):
    ours.open_file(path)


def test_a_file_cut_in_its_data_names_the_tensor(tmp_path, params):
  path = _write(tmp_path / "tiny.gguf", params)
  path.write_bytes(path.read_bytes()[:-5000])
  with pytest.raises(WeightsFormatError, match="cut short: tensor .* ends at"):
    _read(path)


def test_a_file_cut_in_its_header(tmp_path, params):
  path = _write(tmp_path / "tiny.gguf", params)
  data = path.read_bytes()
  start = gguf_header.read_header(path).start
  for size in (4, 20, 200, 1500, start // 2, start - 100):
    path.write_bytes(data[:size])
    with pytest.raises(WeightsFormatError, match="cut short or damaged"):
      gguf_header.read_header(path)


def test_not_a_gguf_file(tmp_path):
  path = tmp_path / "tiny.gguf"
  path.write_bytes(b"PK\3\4 and so on")
  with pytest.raises(WeightsFormatError, match="no GGUF file"):
    gguf_header.read_header(path)
  path.write_bytes(b"GGUF" + struct.pack(">I", 3) + b"\0" * 100)
  with pytest.raises(WeightsFormatError, match="version .*, expected 2 or 3"):
    gguf_header.read_header(path)


def test_without_the_gguf_package(tmp_path, params, monkeypatch):
  path = _write(tmp_path / "tiny.gguf", params)
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(
    ImportError, match=r'pip install "gemmascope_jax\[demo\]"'
  ):
    ours.open_file(path)


def test_tokenizer_is_rebuilt_once(tmp_path, params, cache_folder, monkeypatch):
  path = _write(tmp_path / "tiny.gguf", params)
  tokenizer = ours.open_file(path).tokenizer()
  assert tokenizer.vocab_size == VOCAB
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
  words = _vocabulary()[0]
  ids = tokenizer.encode("ab a  <start_of_turn>€")
  assert [words[id_] for id_ in ids] == [
    *("ab", "▁a", "  ", "<start_of_turn>", "<0xE2>", "<0x82>", "<0xAC>")
  ]
  assert tokenizer.decode([2, *ids, 1]) == "ab a  <start_of_turn>€"
  assert len(list((cache_folder / "tokenizers").iterdir())) == 1
  monkeypatch.delattr(ours.sentencepiece_model, "rebuild")
  again = ours.open_file(path).tokenizer()
  assert again.fingerprint == tokenizer.fingerprint


def test_another_kind_of_tokenizer(tmp_path, params, monkeypatch):
  monkeypatch.setattr(
    gguf.GGUFWriter,
    "add_tokenizer_model",
    lambda self, model: self.add_string("tokenizer.ggml.model", "gpt2"),
  )
  path = _write(tmp_path / "tiny.gguf", params)
  with pytest.raises(TokenizerNotFoundError, match="'gpt2', expected 'llama'"):
    ours.open_file(path).tokenizer()
