"""Google's Orbax layout: the same weights as through Hugging Face's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as legacy
import pytest
import tiny_files
from tiny_files import CONFIG

from gemmascope_jax import gemma
from gemmascope_jax.gemma.tokenizer import HuggingFaceTokenizer
from gemmascope_jax.gemma.weights import huggingface, layout, official
from gemmascope_jax.gemma.weights.errors import (
  TokenizerNotFoundError,
  WeightsFormatError,
)


def _nested(params, *, swapped=False, padding=0, fused=False):
  """The tree of google-deepmind/gemma for our parameters."""
  embedding = params["embedder"]["embedding"]
  tree = {
    "embedder": {"input_embedding": np.pad(embedding, ((0, padding), (0, 0)))},
    "final_norm": dict(params["final_norm"]),
  }
  for name, layer in params.items():
    if not name.startswith("layer_"):
      continue
    attn, mlp = layer["attn"], layer["mlp"]
    query, key, value = (attn[x].transpose(1, 0, 2) for x in "qkv")
    gating = np.stack([mlp["gate"], mlp["up"]])
    new = {"attn_vec_einsum": {"w": attn["o"]}}
    if fused:
      new["qkv_einsum"] = {"w": np.stack([query, key, value])}
    else:
      new["q_einsum"] = {"w": query}
      new["kv_einsum"] = {"w": np.stack([key, value])}
    for norm in ("q_norm", "k_norm"):
      if norm in attn:
        full = {"q_norm": "_query_norm", "k_norm": "_key_norm"}[norm]
        new[full] = dict(attn[norm])
    tree[name] = {
      "attn": new,
      "mlp": {
        "gating_einsum": gating.swapaxes(1, 2) if swapped else gating,
        "linear": mlp["down"],
      },
      "pre_attention_norm": dict(layer["pre_attention_norm"]),
      "post_attention_norm": dict(layer["post_attention_norm"]),
      "pre_ffw_norm": dict(layer["pre_mlp_norm"]),
      "post_ffw_norm": dict(layer["post_mlp_norm"]),
    }
  return tree


def _flat(tree):
  """As published on Kaggle: keys joined but for the last."""
  flat = {}
  for path, array in layout.flatten(tree):
    if path.endswith(("mlp/linear", "mlp/gating_einsum")):
      path += "/w"
    path, leaf = path.rsplit("/", 1)
    flat.setdefault(f"transformer/{path}", {})[leaf] = array
  flat["SigLiPFromPatches_0/head"] = {"kernel": np.ones((2, 3), np.float32)}
  return flat


def _save(folder, tree):
  # The API with which Google's checkpoints were written.
  with legacy.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, jax.tree.map(jnp.asarray, tree))
  return folder


def _read(weights, num_layers=None):
  count = weights.config.num_layers if num_layers is None else num_layers
  return layout.read_params(
    weights.config, weights.find, num_layers=count, dtype=jnp.float32, mesh=None
  )


def test_outputs_equal_those_of_the_same_weights_from_hugging_face(
  tmp_path, hf_folder, params
):
  folder = _save(tmp_path / "orbax", _flat(_nested(params, padding=5)))
  weights = official.open_folder(folder, CONFIG)
  ours = _read(weights)
  theirs = _read(huggingface.open_folder(hf_folder))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 320, (2, 9)))
  forward = jax.jit(lambda p: gemma.forward(CONFIG, p, tokens).logits)
  np.testing.assert_array_equal(forward(ours), forward(theirs))
  tiny_files.assert_params(ours, params)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("top", [None, "transformer", "params"])
def test_nested_trees_and_either_order_of_the_gating_axes(
  tmp_path, params, top, swapped
):
  tree = _nested(params, swapped=swapped)
  folder = _save(tmp_path / "orbax", tree if top is None else {top: tree})
  tiny_files.assert_params(_read(official.open_folder(folder, CONFIG)), params)


def test_fused_query_key_value(tmp_path):
  config = dataclasses.replace(CONFIG, num_kv_heads=CONFIG.num_heads)
  params = tiny_files.random_params(config)
  folder = _save(tmp_path / "orbax", _nested(params, fused=True))
  tiny_files.assert_params(_read(official.open_folder(folder, config)), params)


def test_only_the_layers_asked_for_are_read(tmp_path, params):
  folder = _save(tmp_path / "orbax", _nested(params))
  some = _read(official.open_folder(folder, CONFIG), num_layers=1)
  tiny_files.assert_params(
    some, {x: params[x] for x in ("embedder", "final_norm", "layer_0")}
  )


def test_an_ambiguous_gating_einsum_is_refused(tmp_path):
  config = dataclasses.replace(CONFIG, mlp_width=CONFIG.width)
  params = tiny_files.random_params(config)
  folder = _save(tmp_path / "orbax", _nested(params))
  with pytest.raises(WeightsFormatError, match="could be either way round"):
    official.open_folder(folder, config)


def test_every_preset_is_known_by_its_shapes():
  for config in gemma.PRESETS.values():
    n, k, d = config.num_heads, config.num_kv_heads, config.width
    h, f = config.head_dim, config.mlp_width
    shapes = {"embedder/input_embedding": (config.vocab_size + 128, d)}
    for i in range(config.num_layers):
      shapes[f"layer_{i}/attn/q_einsum"] = (n, d, h)
      shapes[f"layer_{i}/attn/kv_einsum"] = (2, k, d, h)
      shapes[f"layer_{i}/mlp/linear"] = (f, d)
      if config.qk_norm:
        shapes[f"layer_{i}/attn/_query_norm/scale"] = (h,)
    found = official._recognise(
      "folder",
      {x: jax.ShapeDtypeStruct(y, jnp.bfloat16) for x, y in shapes.items()},
    )
    assert found.name == config.name.removesuffix("-it")


def test_unknown_shapes_ask_for_a_config(tmp_path, params):
  folder = _save(tmp_path / "orbax", _nested(params))
  with pytest.raises(WeightsFormatError, match="no preset has its shapes"):
    official.open_folder(folder)


def test_a_missing_array_is_named(tmp_path, params):
  tree = _nested(params)
  del tree["layer_2"]["mlp"]["linear"]
  folder = _save(tmp_path / "orbax", tree)
  with pytest.raises(
    WeightsFormatError, match="array layer_2/mlp/linear is mi"
  ):
    _read(official.open_folder(folder, CONFIG))


def test_a_wrong_shape_is_named(tmp_path, params):
  tree = _nested(params)
  tree["layer_1"]["attn"]["q_einsum"]["w"] = np.ones((4, 64, 11), np.float32)
  folder = _save(tmp_path / "orbax", tree)
  with pytest.raises(
    WeightsFormatError, match="layer_1/attn/q_einsum.*expected"
  ):
    _read(official.open_folder(folder, CONFIG))


@pytest.mark.parametrize(
  ("cut", "message"),
  [("d/*", "no whole Orbax checkpoint"), ("ocdbt*/d/*", "missing or cut")],
)
def test_cut_files_are_an_error(tmp_path, params, cut, message):
  folder = _save(tmp_path / "orbax", _nested(params))
  for path in folder.glob(cut):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(WeightsFormatError, match=message):
    _read(official.open_folder(folder, CONFIG))


def test_another_checkpoint_is_refused(tmp_path):
  folder = _save(tmp_path / "orbax", {"sae": {"w_enc": np.ones((2, 3))}})
  with pytest.raises(WeightsFormatError, match="no embedder/input_embedding"):
    official.open_folder(folder)


def test_the_hash_is_that_of_the_files(tmp_path, params):
  folder = _save(tmp_path / "orbax", _nested(params))
  before = official.open_folder(folder, CONFIG).hash()
  assert before == official.open_folder(folder, CONFIG).hash()
  (folder / "tokenizer.json").write_text("{}")
  assert before == official.open_folder(folder, CONFIG).hash()
  (folder / "more").write_text("x")
  assert before != official.open_folder(folder, CONFIG).hash()


def test_the_tokenizer_lies_beside_the_checkpoint(tmp_path, params):
  folder = _save(tmp_path / "orbax", _nested(params))
  weights = official.open_folder(folder, CONFIG)
  with pytest.raises(TokenizerNotFoundError, match="tokenizer.model or token"):
    weights.tokenizer()
  tiny_files.write_tokenizer(tmp_path)
  assert isinstance(weights.tokenizer(), HuggingFaceTokenizer)
