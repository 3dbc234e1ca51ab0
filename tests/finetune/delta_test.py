import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_chats

from gemmascope_jax import artifacts, finetune, parallel
from gemmascope_jax.finetune import delta

ABOUT = {"name": "our test", "licences": {"dialogue": "MIT"}}


def _trained(lm, names=("layer_1", "layer_2")):
  """Blocks a little off the base."""
  rng = np.random.default_rng(5)
  return jax.tree.map(
    lambda x: x + jnp.asarray(rng.normal(0, 1e-3, x.shape), jnp.float32),
    {name: lm.params[name] for name in names},
  )


def _leaves(tree):
  return [np.asarray(x, np.float32) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
  ("dtype", "error"), [("float32", 1e-7), ("bfloat16", 2**-8)]
)
def test_the_sum_is_what_was_trained(tmp_path, dtype, error):
  lm = tiny_chats.lm()
  blocks = _trained(lm)
  delta.write(tmp_path / delta.FILE, lm, blocks, ABOUT, dtype)
  tuned = finetune.apply(lm, tmp_path)
  for name in ("embedder", "final_norm", "layer_0"):
    jax.tree.map(
      np.testing.assert_array_equal, tuned.params[name], lm.params[name]
    )
  for ours, theirs, base in zip(
    _leaves({k: tuned.params[k] for k in blocks}),
    _leaves(blocks),
    _leaves({k: lm.params[k] for k in blocks}),
    strict=True,
  ):
    assert not (ours == base).all()
    limit = error * np.abs(theirs - base).max() + 1e-7
    np.testing.assert_allclose(ours, theirs, atol=limit, rtol=0)
  about = delta.describe(tmp_path)
  assert about["base_weights_hash"] == lm.weights_hash
  assert about["licences"] == ABOUT["licences"]
  assert about["code"] == artifacts.code_version()


def test_identity(tmp_path):
  lm = tiny_chats.lm()
  one, two = tmp_path / "one", tmp_path / "two"
  delta.write(one / delta.FILE, lm, _trained(lm), ABOUT)
  delta.write(two / delta.FILE, lm, _trained(lm, ("layer_2",)), ABOUT)
  first = finetune.apply(lm, one)
  assert first.label == "tiny + our test"
  assert len(first.weights_hash) == 64 and first.weights_hash != lm.weights_hash
  assert first.weights_hash == finetune.apply(lm, one).weights_hash
  assert first.weights_hash != finetune.apply(lm, two).weights_hash
  before = jax.tree.map(np.asarray, tiny_chats.lm().params)
  jax.tree.map(np.testing.assert_array_equal, lm.params, before)


def test_a_part_of_the_model_in_another_dtype_on_a_mesh(tmp_path):
  lm = tiny_chats.lm()
  delta.write(tmp_path / delta.FILE, lm, _trained(lm), ABOUT, "float32")
  whole = finetune.apply(lm, tmp_path)
  part = tiny_chats.lm(jnp.bfloat16)
  params = {k: v for k, v in part.params.items() if k != "layer_2"}
  mesh = parallel.make_mesh({"model": 2})
  part = dataclasses.replace(part, params=parallel.shard(params, mesh))
  found = finetune.apply(part, tmp_path)
  assert found.weights_hash == whole.weights_hash
  assert "layer_2" not in found.params
  gate = found.params["layer_1"]["mlp"]["gate"]
  assert gate.sharding == part.params["layer_1"]["mlp"]["gate"].sharding
  assert gate.dtype == jnp.bfloat16
  expected = whole.params["layer_1"]["mlp"]["gate"]
  np.testing.assert_allclose(
    gate.astype(jnp.float32), expected, rtol=2**-7, atol=1e-3
  )


def test_errors(tmp_path):
  lm = tiny_chats.lm()
  path = tmp_path / delta.FILE
  with pytest.raises(
    FileNotFoundError, match="run `python -m experiments.fine"
  ):
    finetune.apply(lm, tmp_path)
  with pytest.raises(ValueError, match="dtype is 'int8'; expected float32 or"):
    delta.write(path, lm, _trained(lm), ABOUT, "int8")
  with pytest.raises(
    ValueError, match="layer_9/attn/.*: tiny has none of that"
  ):
    delta.write(path, lm, {"layer_9": lm.params["layer_0"]}, ABOUT)
  bad = jax.tree.map(lambda x: x * np.nan, {"layer_1": lm.params["layer_1"]})
  with pytest.raises(ValueError, match="has become infinite or NaN"):
    delta.write(path, lm, bad, ABOUT)
  assert not path.exists()
  delta.write(path, lm, _trained(lm), ABOUT)
  with pytest.raises(
    ValueError, match="fine-tune of tiny with weights 0000.*lo"
  ):
    finetune.apply(tiny_chats.lm(seed=1), tmp_path)
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match="is damaged: its content is not what"):
    finetune.apply(lm, tmp_path)
  path.write_bytes(content[:100])
  with pytest.raises(ValueError, match="is no fine-tune of ours, or damaged"):
    finetune.apply(lm, tmp_path)
