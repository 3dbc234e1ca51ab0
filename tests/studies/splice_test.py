"""Splicing into a model in parts, loaded as a config says, against one device."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from gemmascope_jax import parallel
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.experiment import settings
from gemmascope_jax.gemma import on_mesh
from gemmascope_jax.studies import splice
from gemmascope_jax.studies.replacements import Constant
from tests.gemma import tiny_files


@pytest.fixture
def config(tmp_path):
  tiny_files.write_tokenizer(tmp_path)
  tensors = tiny_files.hf_tensors(tiny_files.random_params())
  found = default.get_config()
  found.lm.source = str(tiny_files.write_hf(tmp_path, tensors))
  return found


def _records(lm):
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, tiny_files.VOCAB, (4, 12), np.int32)
  tokens[:, 0], tokens[1, 9:] = 2, 0
  replacements = {"zero": Constant(jnp.zeros(tiny_files.CONFIG.width))}
  policy = TokenPolicy(excluded_ids=(0, 2), pad_id=0)
  shift = np.zeros(tiny_files.CONFIG.width)
  record, spliced = splice.run_batch(
    lm, "res.1", replacements, tokens, policy, shift
  )
  return record, spliced["zero"]


def test_a_model_in_parts(config):
  expected = _records(settings.load_lm(config))
  config.mesh.data, config.mesh.model = 2, 2
  config.mesh.fully_sharded = True
  lm = settings.load_lm(config)
  assert isinstance(lm.params, on_mesh.Params)
  gate = lm.params["layer_1"]["mlp"]["gate"]
  assert gate.addressable_shards[0].data.size * 4 == gate.size
  for ours, theirs in zip(_records(lm), expected, strict=True):
    for name, value in vars(theirs).items():
      if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        np.testing.assert_allclose(
          vars(ours)[name],
          value,
          rtol=1e-4,
          atol=1e-5 * np.abs(value).max(),
          err_msg=name,
        )


@pytest.mark.parametrize(
  ("count", "ways", "shapes"),
  [
    (16, 1, [8, 8]),
    (11, 1, [8, 8]),
    (8, 1, [8]),
    (5, 1, [5]),
    (1, 1, [1]),
    (0, 1, []),
    (5, 2, [6]),
    (3, 4, [4]),
    (5, 4, [8]),
    (9, 4, [8, 8]),
  ],
)
def test_batches_have_one_shape_and_little_padding(count, ways, shapes):
  params = (
    {} if ways == 1 else on_mesh.Params({}, parallel.make_mesh({"data": ways}))
  )
  tokens = np.arange(1, 3 * count + 1).reshape(count, 3)
  found = splice.batches(params, tokens, 8, 0)
  assert [len(each) for each in found] == shapes
  together = np.concatenate([*found, tokens[:0]])
  np.testing.assert_array_equal(together[:count], tokens)
  assert not together[count:].any()
