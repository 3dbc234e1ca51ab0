"""Cutting leaves out of stored tensors, whatever the order of their axes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_files
from tiny_files import CONFIG

from gemmascope_jax import gemma, parallel
from gemmascope_jax.gemma.weights import layout
from gemmascope_jax.gemma.weights.errors import WeightsFormatError

SIZES = layout.letters(CONFIG)


def _read(find, num_layers=CONFIG.num_layers, dtype=jnp.float32, mesh=None):
  return layout.read_params(
    CONFIG, find, num_layers=num_layers, dtype=dtype, mesh=mesh
  )


def _finder(params, change=lambda path, stored: stored):
  """Stores each leaf under its letters in reverse: another order for all."""
  axes = layout.leaves(CONFIG, CONFIG.num_layers)

  def find(path):
    leaf = params
    for key in path.split("/"):
      leaf = leaf[key]
    order = axes[path][::-1]
    return change(path, layout.Stored(path, leaf.T, tuple(order)))

  return find


def test_leaves_are_those_of_the_model():
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  expected = {
    path: tuple(SIZES[letter] for letter in axes)
    for path, axes in layout.leaves(CONFIG, CONFIG.num_layers).items()
  }
  assert {p: x.shape for p, x in layout.flatten(shapes)} == expected


@pytest.mark.parametrize(
  "stored_axes",
  [
    order
    for letters in itertools.permutations("DNH")
    for order in (
      tuple(letters),
      ("".join(letters[:2]), letters[2]),
      (letters[0], "".join(letters[1:])),
      ("".join(letters),),
    )
  ],
  ids="-".join,
)
def test_any_part_of_a_leaf_from_any_order(stored_axes):
  rng = np.random.default_rng(0)
  leaf = rng.normal(size=[SIZES[x] for x in "DNH"]).astype(np.float32)
  flat = "".join(stored_axes)
  tensor = leaf.transpose(["DNH".index(x) for x in flat]).reshape(
    [np.prod([SIZES[x] for x in group]) for group in stored_axes]
  )
  stored = layout.Stored("t", tensor, stored_axes)
  for index in (
    (slice(None),) * 3,
    (slice(8, 24), slice(1, 3), slice(None)),
    (slice(None), slice(3, 4), slice(2, 7)),
    (slice(0, 1), slice(None), slice(9, 10)),
  ):
    part = layout._read(stored, "DNH", SIZES, index, jnp.float32)
    np.testing.assert_array_equal(part, leaf[index])


def test_reads_the_tree_and_only_the_layers_asked_for(params):
  tiny_files.assert_params(_read(_finder(params)), params)
  some = _read(_finder(params), num_layers=1)
  assert sorted(some) == ["embedder", "final_norm", "layer_0"]
  tiny_files.assert_params(some["layer_0"], params["layer_0"])


def test_shards_by_the_rules_of_parallel(params):
  mesh = parallel.make_mesh({"data": 2, "model": 2})
  sharded = _read(_finder(params), mesh=mesh)
  tiny_files.assert_params(sharded, params)
  expected = parallel.shardings(params, mesh)
  assert jax.tree.map(lambda x: x.sharding, sharded) == expected
  query = sharded["layer_0"]["attn"]["q"]
  assert query.addressable_shards[0].data.shape == (64, 2, 10)


def test_gains_become_scales_in_float32_before_the_cast(params):
  gain = np.float32(1.0 + 3 * 2.0**-12)

  def change(path, stored):
    if path != "final_norm/scale":
      return stored
    tensor = np.full_like(stored.tensor, gain)
    return dataclasses.replace(stored, tensor=tensor, gain=True)

  read = _read(_finder(params, change), dtype=jnp.bfloat16)
  scale = read["final_norm"]["scale"]
  assert scale.dtype == jnp.bfloat16
  # The gain itself would have rounded to 1 in bfloat16.
  np.testing.assert_array_equal(np.float32(scale), 3 * 2.0**-12)
  embedding = read["embedder"]["embedding"]
  np.testing.assert_array_equal(
    embedding, params["embedder"]["embedding"].astype(ml_dtypes.bfloat16)
  )


def test_padding_rows_of_the_embedding_are_cut(params):
  def change(path, stored):
    if path != layout.EMBEDDING:
      return stored
    padded = np.pad(stored.tensor.T, ((0, 9), (0, 0)), constant_values=7)
    return layout.Stored(path, padded, ("V", "D"))

  tiny_files.assert_params(_read(_finder(params, change)), params)


@pytest.mark.parametrize(
  "name", ["layer_1/mlp/up", "final_norm/scale", "embedder/embedding"]
)
def test_a_wrong_shape_is_an_error_that_names_all(params, name):
  def change(path, stored):
    if path != name:
      return stored
    return dataclasses.replace(stored, tensor=stored.tensor[:-1])

  with pytest.raises(WeightsFormatError) as error:
    _read(_finder(params, change))
  assert name in str(error.value)
  assert "expected" in str(error.value) and CONFIG.name in str(error.value)


def test_quantised_integers_are_no_weights(params):
  def change(path, stored):
    if path != "layer_0/attn/q":
      return stored
    return dataclasses.replace(stored, tensor=stored.tensor.astype(np.int8))

  with pytest.raises(WeightsFormatError, match="holds int8, expected floating"):
    _read(_finder(params, change))
