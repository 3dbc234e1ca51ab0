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
from tests.sae.families import cases


def export(recipe, mesh, folder, width=64):
  stream = rows_stream.RowsStream(recipe.batch_size, width=width, site="res.1")
  units = Units.of(stream, recipe)
  rows = cases.sample(cases.rows(0, rows=32, width=width))
  state = endpoints.initial_state(recipe, rows, seed=0, mesh=mesh)
  noise = np.random.default_rng(0).normal(size=width).astype(np.float32)
  state.params["b_dec"] = state.params["b_dec"] + noise
  endpoints.save(stream, units, recipe.name, recipe, state, folder)
  return stream, units, state


@pytest.mark.parametrize("family", ["jumprelu", "gated", "topk", "batch_topk"])
def test_the_same_bytes_from_a_mesh(tmp_path, family):
  recipe = Recipe(family=family, width=9216, batch_size=32)  # 2.25 blocks
  for name, axes in (
    ("1", {}),
    ("8", {"model": 8}),
    ("2", {"data": 4, "model": 2}),
  ):
    mesh = parallel.make_mesh(axes) if axes else None
    _, units, state = export(recipe, mesh, tmp_path / name, width=8)
  files = [(tmp_path / n / "params.npz").read_bytes() for n in ("1", "2", "8")]
  assert files[0] == files[1] == files[2]
  found = sae.load(tmp_path / "8").params
  w_enc, b_dec = np.asarray(state.params["w_enc"]), state.params["b_dec"]
  np.testing.assert_array_equal(found.w_enc, w_enc.T)
  np.testing.assert_allclose(
    found.b_enc, -units.scales[0] * (w_enc @ b_dec), rtol=2e-5, atol=2e-5
  )


def test_little_of_it_is_ever_on_the_host(tmp_path):
  recipe = Recipe(width=2**17, batch_size=32)
  mesh = parallel.make_mesh({"model": 8})
  stream, units, state = export(recipe, mesh, tmp_path / "once")
  tracemalloc.start()
  try:
    endpoints.save(stream, units, "again", recipe, state, tmp_path / "again")
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert most < whole / 5
