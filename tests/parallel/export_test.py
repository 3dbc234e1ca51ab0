"""Saving an SAE that is spread over devices."""

import tracemalloc

import jax
import numpy as np
import pytest

from gemmascope_jax import parallel, sae
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.training import endpoints
from gemmascope_jax.training.units import Units
from tests import rows_stream
from tests.digests import digests
from tests.sae.families import cases


def begin(recipe, width):
  stream = rows_stream.RowsStream(recipe.batch_size, width=width, site="res.1")
  rows = cases.sample(cases.rows(0, rows=32, width=width))
  state = endpoints.initial_state(recipe, rows, seed=0)
  noise = np.random.default_rng(0).normal(size=width).astype(np.float32)
  state.params["b_dec"] = state.params["b_dec"] + noise
  save = lambda state, folder: endpoints.save(
    stream, Units.of(stream, recipe), recipe.name, recipe, state, folder
  )
  return state, save


@pytest.mark.parametrize("family", ["jumprelu", "gated", "topk", "batch_topk"])
def test_the_same_bytes_from_a_mesh(tmp_path, family):
  recipe = Recipe(family=family, width=9216, batch_size=32)  # 2.25 blocks
  state, save = begin(recipe, width=8)
  save(state, tmp_path / "1")
  for name, axes in (("8", {"model": 8}), ("2", {"data": 4, "model": 2})):
    mesh = parallel.make_mesh(axes)
    save(parallel.shard(state, mesh, parallel.SAE_RULES), tmp_path / name)
  files = [digests(tmp_path / n, pattern="*.npz") for n in ("1", "2", "8")]
  assert files[0] == files[1] == files[2]
  np.testing.assert_array_equal(
    sae.load(tmp_path / "8").params.w_enc, state.params["w_enc"].T
  )


def test_little_of_it_is_ever_on_the_host(tmp_path):
  recipe = Recipe(width=2**18, batch_size=32)
  state, save = begin(recipe, width=64)
  mesh = parallel.make_mesh({"model": 8})
  state = parallel.shard(state, mesh, parallel.SAE_RULES)
  save(state, tmp_path / "once")  # compiles
  tracemalloc.start()
  try:
    save(state, tmp_path / "again")
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert most < whole / 5
