import dataclasses

import jax
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.gemma import GemmaConfig

# Gemma 2's report, table 2 (embeddings with 256,128 rows there, 128 of them
# unused), and Gemma 3's report, table 1, in millions.
_GEMMA2 = {
  "gemma-2-2b": (590_118_912, 2_024_517_888),
  "gemma-2-9b": (917_962_752, 8_324_201_984),
  "gemma-2-27b": (1_180_237_824, 26_047_480_320),
}
_GEMMA3 = {
  "gemma-3-270m": (168, 100),
  "gemma-3-1b": (302, 698),
  "gemma-3-4b": (671, 3_209),
  "gemma-3-12b": (1_007, 10_759),
  "gemma-3-27b": (1_409, 25_600),
}

# As on the Hub: what equals the class's defaults is left out of Gemma 3's.
_HUB = {
  "gemma-2-2b": {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
  },
  "gemma-2-27b": {
    "model_type": "gemma2",
    "head_dim": 128,
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
  },
  "gemma-3-1b": {
    "model_type": "gemma3_text",
    "head_dim": 256,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
  },
  "gemma-3-27b": {
    "model_type": "gemma3",
    "text_config": {
      "head_dim": 128,
      "hidden_size": 5376,
      "intermediate_size": 21504,
      "model_type": "gemma3_text",
      "num_attention_heads": 32,
      "num_hidden_layers": 62,
      "num_key_value_heads": 16,
      "query_pre_attn_scalar": 168,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
      "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
  },
}


def _counts(config):
  shapes = jax.eval_shape(lambda: gemma.init(config, jax.random.key(0)))
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  return size(shapes["embedder"]), size(shapes) - size(shapes["embedder"])


@pytest.mark.parametrize("name", list(_GEMMA2))
def test_gemma2_has_the_parameters_of_its_report(name):
  config = gemma.preset(name)
  embedding, others = _counts(config)
  assert (embedding // config.vocab_size * 256_128, others) == _GEMMA2[name]
  assert embedding == 256_000 * config.width


@pytest.mark.parametrize("name", list(_GEMMA3))
def test_gemma3_has_the_parameters_of_its_report(name):
  counts = _counts(gemma.preset(name))
  assert tuple(round(count / 1e6) for count in counts) == _GEMMA3[name]


@pytest.mark.parametrize("name", list(_GEMMA2 | _GEMMA3))
def test_instruction_tuned_twins(name):
  base, twin = gemma.preset(name), gemma.preset(f"{name}-it")
  assert twin == dataclasses.replace(base, name=f"{name}-it")


def test_layer_kinds():
  second, third = gemma.preset("gemma-2-2b"), gemma.preset("gemma-3-270m")
  assert [i for i in range(6) if second.is_local(i)] == [0, 2, 4]
  assert [i for i in range(18) if not third.is_local(i)] == [5, 11, 17]


def test_configs_are_hashable():
  assert len({hash(config) for config in gemma.PRESETS.values()}) == len(
    gemma.PRESETS
  )


def test_unknown_preset():
  with pytest.raises(ValueError, match="'gemma-9': no such preset; there are"):
    gemma.preset("gemma-9")


@pytest.mark.parametrize("name", list(_HUB))
def test_from_hf_gives_the_preset(name):
  found = GemmaConfig.from_hf(_HUB[name])
  expected = gemma.preset(name)
  rows = 262_208 if name == "gemma-3-27b" else expected.vocab_size
  assert found.name == name
  assert found.vocab_size == rows
  for field in GemmaConfig.__dataclass_fields__:
    if field != "vocab_size":
      assert getattr(found, field) == getattr(expected, field), field


def test_from_hf_reads_what_transformers_writes(oracle):
  hf, config = oracle.hf_config, oracle.config
  assert config.num_layers == hf["num_hidden_layers"]
  assert config.window == hf["sliding_window"]
  kinds = ["full_attention", "sliding_attention"]
  assert [kinds[config.is_local(i)] for i in range(config.num_layers)] == hf[
    "layer_types"
  ]


def test_from_hf_takes_a_name():
  assert GemmaConfig.from_hf(_HUB["gemma-2-2b"], "mine").name == "mine"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "llama"}, "model_type 'llama'"),
    ({"attention_bias": True}, "attention_bias = True"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
    ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
    ({"layer_types": ["sliding_attention"]}, "expected 26 of"),
    ({"layer_types": ["linear_attention"] * 26}, "expected 26 of"),
    (
      {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
      "rope_type 'yarn'",
    ),
    (
      {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
      "RoPE factor 2.0 in the Hugging Face config: Gemma 2",
    ),
    ({"num_key_value_heads": 3}, "num_heads 8 is not a multiple"),
    ({"head_dim": 7}, "head_dim 7 is odd"),
  ],
)
def test_from_hf_refuses_what_is_not_computed(change, message):
  with pytest.raises(ValueError, match=message):
    GemmaConfig.from_hf(_HUB["gemma-2-2b"] | change)


def test_from_hf_refuses_scaled_local_layers():
  ropes = {"sliding_attention": {"rope_type": "linear", "factor": 4.0}}
  with pytest.raises(ValueError, match="RoPE factor 4.0 of local layers"):
    GemmaConfig.from_hf(_HUB["gemma-3-1b"] | {"rope_parameters": ropes})


def test_pattern_of_unknown_kinds():
  fields = dict(vars(gemma.preset("gemma-2-2b")))
  with pytest.raises(ValueError, match="must hold 'local' and 'global' only"):
    GemmaConfig(**(fields | {"layer_pattern": ("local", "wide")}))
