"""Hugging Face folders, against transformers and against damage."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_files
from tiny_files import CONFIG

from gemmascope_jax import gemma
from gemmascope_jax.gemma.weights import huggingface, layout
from gemmascope_jax.gemma.weights.errors import (
  WeightsFormatError,
  WeightsNotFoundError,
)


def _params(folder, num_layers=CONFIG.num_layers, dtype=jnp.float32):
  weights = huggingface.open_folder(folder)
  return layout.read_params(
    weights.config, weights.find, num_layers=num_layers, dtype=dtype, mesh=None
  )


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_logits_equal_transformers(tmp_path, family):
  import torch
  import transformers

  fields = {
    "vocab_size": 70,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 13,
    "sliding_window": 5,
    "bos_token_id": 2,
  }
  if family == "gemma2":
    config = transformers.Gemma2Config(**fields)
    cls = transformers.Gemma2ForCausalLM
  else:
    config = transformers.Gemma3TextConfig(**fields)
    cls = transformers.Gemma3ForCausalLM
  torch.manual_seed(0)
  model = cls._from_config(config, attn_implementation="eager").eval()
  with torch.no_grad():
    for weight in model.parameters():
      weight.normal_(0.0, 0.3)
  model.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
  assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1

  tokens = np.random.default_rng(1).integers(0, 70, (2, 11))
  with torch.no_grad():
    theirs = model(torch.tensor(tokens), use_cache=False).logits.numpy()
  weights = huggingface.open_folder(tmp_path / "hf")
  params = layout.read_params(
    weights.config, weights.find, num_layers=3, dtype=jnp.float32, mesh=None
  )
  ours = jax.jit(
    lambda params: (
      gemma.forward(weights.config, params, jnp.asarray(tokens)).logits
    )
  )(params)
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_one_file_and_several(tmp_path, params):
  tensors = tiny_files.hf_tensors(params)
  single = tiny_files.write_hf(tmp_path / "single", tensors)
  several = tiny_files.write_hf(tmp_path / "several", tensors, shards=3)
  tiny_files.assert_params(_params(single), params)
  tiny_files.assert_params(_params(several), params)


def test_only_the_files_of_the_layers_asked_for_are_opened(tmp_path, params):
  tensors = tiny_files.hf_tensors(params)
  folder = tiny_files.write_hf(tmp_path / "tiny", tensors, shards=3)
  (folder / "model-00003-of-00003.safetensors").write_bytes(b"")
  some = _params(folder, num_layers=2)
  tiny_files.assert_params(
    some, {key: params[key] for key in params if key != "layer_2"}
  )


def test_bfloat16_files(tmp_path, params):
  tensors = {
    name: x.astype(ml_dtypes.bfloat16)
    for name, x in tiny_files.hf_tensors(params).items()
  }
  folder = tiny_files.write_hf(tmp_path / "tiny", tensors)
  for dtype in (jnp.float32, jnp.bfloat16):
    query = _params(folder, dtype=dtype)["layer_1"]["attn"]["q"]
    assert query.dtype == dtype
    np.testing.assert_array_equal(
      np.float32(query),
      np.float32(params["layer_1"]["attn"]["q"].astype(ml_dtypes.bfloat16)),
    )


@pytest.mark.parametrize(
  "prefix", ["language_model.model.", "model.language_model."]
)
def test_the_text_part_of_a_multimodal_model(tmp_path, params, prefix):
  tensors = {
    name.replace("model.", prefix, 1): x
    for name, x in tiny_files.hf_tensors(params).items()
  }
  tensors["vision_tower.encoder.layers.0.self_attn.q_proj.weight"] = np.ones(
    (3, 3), np.float32
  )
  fields = {
    "model_type": "gemma3",
    "text_config": tiny_files.hf_fields(),
    "vision_config": {"hidden_size": 3},
  }
  folder = tiny_files.write_hf(tmp_path / "tiny", tensors, fields)
  tiny_files.assert_params(_params(folder), params)
  assert huggingface.open_folder(folder).bos_id == 2


def test_the_hash_is_that_of_the_files(tmp_path, params):
  tensors = tiny_files.hf_tensors(params)
  hashes = {}
  for name, shards in (("a", 1), ("b", 3), ("c", 3)):
    folder = tiny_files.write_hf(tmp_path / name, tensors, shards=shards)
    hashes[name] = huggingface.open_folder(folder).hash()
  assert hashes["b"] == hashes["c"] != hashes["a"]
  tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
  folder = tiny_files.write_hf(tmp_path / "d", tensors, shards=3)
  assert huggingface.open_folder(folder).hash() != hashes["b"]


def test_instruction_tuned_models_are_known_by_their_name(tmp_path, params):
  # The 270M's config over the tiny tensors: nothing is read here.
  fields = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    "hidden_size": 640,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "intermediate_size": 2048,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
  }
  tensors = tiny_files.hf_tensors(params)
  for name, expected in (("x", "gemma-3-270m"), ("x-it", "gemma-3-270m-it")):
    folder = tiny_files.write_hf(tmp_path / name, tensors, fields)
    weights = huggingface.open_folder(folder)
    assert weights.config == gemma.preset(expected)
    assert weights.label == expected
    # And the tensors are another model's.
    with pytest.raises(WeightsFormatError, match=r"expected .*\(262144, 640\)"):
      _params(folder, num_layers=0)


def test_a_missing_tensor_is_named(tmp_path, params):
  tensors = tiny_files.hf_tensors(params)
  del tensors["model.layers.1.mlp.up_proj.weight"]
  folder = tiny_files.write_hf(tmp_path / "tiny", tensors)
  with pytest.raises(
    WeightsFormatError, match="layers.1.mlp.up_proj.weight is"
  ):
    _params(folder)


def test_a_tensor_that_the_index_promises(tmp_path, params):
  tensors = tiny_files.hf_tensors(params)
  folder = tiny_files.write_hf(tmp_path / "tiny", tensors, shards=3)
  path = folder / huggingface.INDEX
  index = json.loads(path.read_text())
  index["weight_map"]["model.norm.weight"] = "model-00002-of-00003.safetensors"
  path.write_text(json.dumps(index))
  with pytest.raises(WeightsFormatError, match="model.norm.weight is missing"):
    _params(folder)


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_truncated_file_is_named(hf_folder, size):
  path = hf_folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(
    WeightsFormatError, match="model.safetensors is cut short"
  ):
    _params(hf_folder)


def test_a_missing_shard_is_named(tmp_path, params):
  tensors = tiny_files.hf_tensors(params)
  folder = tiny_files.write_hf(tmp_path / "tiny", tensors, shards=3)
  (folder / "model-00002-of-00003.safetensors").unlink()
  with pytest.raises(WeightsNotFoundError, match="model-00002-of-00003"):
    _params(folder)
  with pytest.raises(WeightsNotFoundError, match="model-00002-of-00003"):
    huggingface.open_folder(folder).hash()


def test_no_safetensors(hf_folder):
  (hf_folder / "model.safetensors").unlink()
  with pytest.raises(
    WeightsNotFoundError, match=r"no \*.safetensors; download"
  ):
    huggingface.open_folder(hf_folder)
  (hf_folder / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(WeightsNotFoundError, match="pytorch_model.bin; convert"):
    huggingface.open_folder(hf_folder)


def test_another_kind_of_model(tmp_path, params):
  fields = tiny_files.hf_fields() | {"model_type": "llama"}
  folder = tiny_files.write_hf(
    tmp_path / "tiny", tiny_files.hf_tensors(params), fields
  )
  with pytest.raises(ValueError, match="config.json: model_type 'llama'"):
    huggingface.open_folder(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json is not valid JSON"):
    huggingface.open_folder(folder)


def test_no_language_model(tmp_path):
  folder = tiny_files.write_hf(
    tmp_path / "tiny", {"vision.weight": np.ones((2, 2), np.float32)}
  )
  with pytest.raises(WeightsFormatError, match="no tensor embed_tokens.weight"):
    huggingface.open_folder(folder)


def test_an_index_without_a_map(tmp_path, params):
  tensors = tiny_files.hf_tensors(params)
  folder = tiny_files.write_hf(tmp_path / "tiny", tensors, shards=3)
  (folder / huggingface.INDEX).write_text("{}")
  with pytest.raises(WeightsFormatError, match="no weight_map"):
    huggingface.open_folder(folder)
