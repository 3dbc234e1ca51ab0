"""A tiny Gemma in every format: what is rounded, and what is not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.studies.precision import formats
from gemmascope_jax.studies.precision import lm as lms
from tests.data import tiny_gemma

LM = tiny_gemma.lm()


def _logits(lm):
  tokens = np.random.default_rng(0).integers(4, 200, (2, 9))
  return np.asarray(gemma.forward(lm.config, lm.params, tokens).logits)


def test_float32_is_the_model_itself():
  assert lms.lm_in(LM, "float32") is LM


@pytest.mark.parametrize("format", formats.FORMATS[1:])
def test_every_format_has_its_leaves_name_and_hash(format):
  found = lms.lm_in(LM, format)
  assert jax.tree.structure(found.params) == jax.tree.structure(LM.params)
  assert found.label == f"{LM.label}, {format}"
  assert found.weights_hash == lms.lm_in(LM, format).weights_hash
  hashes = {lms.lm_in(LM, f).weights_hash for f in formats.FORMATS}
  assert len(hashes) == len(formats.FORMATS)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(found.params)}
  assert dtypes == {formats.dtype(format)}


@pytest.mark.parametrize("format, levels", [("int8", 127), ("int4", 7)])
def test_integers_round_matrices_by_output_and_leave_norms(format, levels):
  found = lms.lm_in(LM, format).params
  outputs = {
    "q": (0,),
    "k": (0,),
    "v": (0,),
    "o": (0, 1),
    "gate": (0,),
    "up": (0,),
    "down": (0,),
    "embedding": (1,),
  }
  flat = jax.tree_util.tree_leaves_with_path(LM.params)
  for path, leaf in flat:
    now = found
    for key in path:
      now = now[key.key]
    name = path[-1].key
    if name == "scale":
      np.testing.assert_array_equal(now, leaf)
      continue
    step = np.abs(leaf).max(axis=outputs[name], keepdims=True) / levels
    error = np.abs(now - leaf)
    assert 0 < error.max() and (error <= step / 2 * (1 + 1e-5)).all()
    codes = np.asarray(now) / step
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)


@pytest.mark.slow
def test_fewer_bits_change_more():
  exact = _logits(LM)
  gaps = [
    np.abs(_logits(lms.lm_in(LM, format)) - exact).max()
    for format in ("float16", "bfloat16", "int4")
  ]
  assert 0 < gaps[0] < gaps[1] < gaps[2]
  assert 0 < np.abs(_logits(lms.lm_in(LM, "int8")) - exact).max() < gaps[2]


def test_bytes():
  sizes = [leaf.size for leaf in jax.tree.leaves(LM.params)]
  assert lms.nbytes(LM, "float32") == 4 * sum(sizes)
  assert lms.nbytes(LM, "float16") == 2 * sum(sizes)
  norms = sum(
    leaf.size for leaf in jax.tree.leaves(LM.params) if leaf.ndim == 1
  )
  c = LM.config
  outputs = c.vocab_size + c.num_layers * (
    (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    + 2 * c.mlp_width
    + 2 * c.width
  )
  assert lms.nbytes(LM, "int8") == sum(sizes) + 3 * norms + 4 * outputs
  weights = sum(sizes) - norms
  assert lms.nbytes(LM, "int4") == weights // 2 + 4 * norms + 4 * outputs


def test_a_model_that_is_not_float32_is_refused():
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), LM.params)
  with pytest.raises(ValueError, match="bfloat16.*lm.dtype=float32"):
    lms.lm_in(dataclasses.replace(LM, params=params), "int8")
