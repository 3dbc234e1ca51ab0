"""SAEs that no host's memory holds: saved and loaded in parts."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gemmascope_jax import parallel, sae
from gemmascope_jax.releases import gemma_scope, npz
from gemmascope_jax.sae.sae import Params
from tests.digests import digests
from tests.releases import gemma_scope_test as one

kinds = pytest.mark.parametrize("kind", one.KINDS)


def _parts(params, size):
  for first in range(0, len(params.b_enc), size):
    cut = slice(first, first + size)
    yield Params(
      w_enc=params.w_enc[:, cut],
      b_enc=params.b_enc[cut],
      w_dec=params.w_dec[cut],
      b_dec=params.b_dec,
      threshold=params.threshold[cut],
      w_skip=params.w_skip,
    )


@kinds
@pytest.mark.parametrize("size", [1, 7, 20])
def test_parts_give_the_same_bytes(tmp_path, kind, size):
  whole = one._sae(**one.KINDS[kind])
  gemma_scope.save(whole, tmp_path / "whole")
  parts = _parts(whole.params, size)
  gemma_scope.save_parts(parts, whole.width, whole.config, tmp_path / "parts")
  assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_parts_that_are_not_all_leave_nothing(tmp_path):
  whole = one._sae()
  parts = list(_parts(whole.params, 7))[:2]
  with pytest.raises(ValueError, match=r"W_enc of shape \(6, 20\) was given"):
    gemma_scope.save_parts(parts, whole.width, whole.config, tmp_path)
  assert not list(tmp_path.iterdir())


@kinds
@pytest.mark.parametrize("axes", [{"model": 4}, {"data": 4, "model": 2}])
def test_a_mesh_gets_the_same_numbers(tmp_path, kind, axes):
  whole = one._sae(**one.KINDS[kind])
  gemma_scope.save(whole, tmp_path)
  found = sae.load(tmp_path, mesh=parallel.make_mesh(axes))
  assert found.config == whole.config
  for name, value in vars(whole.params).items():
    if value is not None:
      np.testing.assert_array_equal(getattr(found.params, name), value)
  assert found.params.w_enc.sharding.spec == P(None, "model")
  assert found.params.w_dec.sharding.spec[0] == "model"
  x = np.random.default_rng(1).normal(size=(8, whole.site_width))
  x = x.astype(np.float32)
  np.testing.assert_allclose(
    jax.jit(lambda sae, x: sae(x))(found, x), whole(x), rtol=1e-4, atol=1e-5
  )


def test_a_mesh_reads_no_more_than_it_holds(tmp_path, monkeypatch):
  gemma_scope.save(one._sae(), tmp_path)
  read = []

  class Map(np.memmap):
    def __getitem__(self, index):
      found = super().__getitem__(index)
      read.append(found.shape)
      return found

  mapped = npz.members
  monkeypatch.setattr(
    npz, "members", lambda f: {k: v.view(Map) for k, v in mapped(f).items()}
  )
  gemma_scope.load(tmp_path, mesh=parallel.make_mesh({"model": 4}))
  matrices = {shape for shape in read if len(shape) == 2}
  assert matrices == {(6, 5), (5, 6)}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mesh_refuses_what_is_not_finite(tmp_path, value):
  gemma_scope.save(one._sae(), tmp_path)
  w_dec = one._sae().params.w_dec
  w_dec[13, 2] = value
  one._rewrite(tmp_path, W_dec=w_dec)
  with pytest.raises(ValueError, match="W_dec holds values that are not fin"):
    gemma_scope.load(tmp_path, mesh=parallel.make_mesh({"model": 4}))


def test_a_mesh_refuses_a_file_cut_short(tmp_path):
  gemma_scope.save(one._sae(), tmp_path)
  file = tmp_path / gemma_scope.ARRAYS
  file.write_bytes(file.read_bytes()[:-40])
  with pytest.raises(ValueError, match="truncated or not a zip|damaged"):
    gemma_scope.load(tmp_path, mesh=parallel.make_mesh({"model": 4}))
