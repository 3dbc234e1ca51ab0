"""Parts of tensors, and how many bytes were read for them."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import tiny_files
from safetensors.numpy import save_file

from gemmascope_jax import parallel
from gemmascope_jax.gemma.weights import huggingface, layout, safetensors_file
from gemmascope_jax.gemma.weights.errors import WeightsFormatError
from gemmascope_jax.parallel import rules

# Every axis divides by 4, and all sizes differ.
CONFIG = tiny_files.GemmaConfig(
  name="gemma3_text",
  vocab_size=320,
  width=64,
  num_layers=2,
  num_heads=8,
  num_kv_heads=4,
  head_dim=10,
  mlp_width=96,
  query_pre_attn_scalar=10,
  qk_norm=True,
  layer_pattern=("local", "global"),
  window=5,
  rope_base_global=1_000_000.0,
  context=32,
)


@pytest.mark.parametrize(
  "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8]
)
@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 5), (2, 0), ()])
def test_any_part_is_what_numpy_cuts_out(tmp_path, dtype, shape):
  whole = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
  save_file({"before": np.ones(3, np.int8), "x": whole}, tmp_path / "f")
  file = safetensors_file.File(tmp_path / "f")
  tensor = file.tensor("x")
  assert tensor.shape == shape and set(file.names()) == {"before", "x"}
  cuts = [slice(None), slice(1, 3), slice(2, 2)]
  for index in itertools.product(cuts, repeat=len(shape)):
    before = file.bytes_read
    part = tensor[index]
    assert part.dtype == dtype
    np.testing.assert_array_equal(part, whole[index])
    assert file.bytes_read - before == part.nbytes


def test_a_file_that_shrinks_and_an_unknown_type(tmp_path):
  path = tmp_path / "f"
  save_file({"x": np.ones((4, 4), np.float32)}, path)
  file = safetensors_file.File(path)
  file._tensors["x"]["dtype"] = "F4"
  with pytest.raises(WeightsFormatError, match="type F4 is unknown"):
    file.tensor("x")
  file._tensors["x"]["dtype"] = "F32"
  with open(path, "r+b") as cut:
    cut.truncate(path.stat().st_size - 8)
  with pytest.raises(WeightsFormatError, match="became shorter"):
    _ = file.tensor("x")[:, :]
  with pytest.raises(WeightsFormatError, match="cut short or damaged"):
    safetensors_file.File(path)


@pytest.mark.parametrize("fully_sharded", [False, True])
def test_each_part_is_read_once_and_no_two_at_a_time(
  tmp_path, monkeypatch, fully_sharded
):
  params = tiny_files.random_params(CONFIG)
  tiny_files.write_hf(
    tmp_path, tiny_files.hf_tensors(params), tiny_files.hf_fields(CONFIG)
  )
  weights = huggingface.open_folder(tmp_path)
  mesh = parallel.make_mesh({"data": 2, "model": 4})
  table = rules.for_lm(fully_sharded)
  largest, cut = [], layout._read
  monkeypatch.setattr(
    layout, "_read", lambda *a: largest.append(cut(*a)) or largest[-1]
  )
  found = layout.read_params(
    weights.config,
    weights.find,
    num_layers=2,
    dtype=np.float32,
    mesh=mesh,
    partition=table,
  )
  tiny_files.assert_params(found, params)
  leaves = dict(layout.flatten(found))
  # Eight devices, but what they share is read for one of them.
  assert weights.bytes_read() == sum(x.nbytes for x in leaves.values())
  parts = sum(
    len({str(s.index) for s in x.addressable_shards}) for x in leaves.values()
  )
  assert len(largest) == parts
  table_size = leaves[layout.EMBEDDING].nbytes
  ways = 8 if fully_sharded else 4
  assert max(x.nbytes for x in largest) == table_size / ways
