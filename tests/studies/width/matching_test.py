"""Nearest directions and rows in common, against dense computations."""

import numpy as np
import pytest
import scipy.sparse

from gemmascope_jax.studies.activity import active, entries
from gemmascope_jax.studies.width import matching
from tests.studies.activity import rows as made


def _unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("pairs", [1 << 24, 60, 1])
def test_nearest_directions_are_those_of_all_pairs(pairs, monkeypatch):
  monkeypatch.setattr(matching, "_PAIRS", pairs)
  rng = np.random.default_rng(0)
  narrow = rng.normal(size=(7, 5)).astype(np.float32) * 3
  wide = rng.normal(size=(23, 5)).astype(np.float32)
  found = matching.nearest(narrow, wide, 3)
  cosines = _unit(narrow) @ _unit(wide).T
  np.testing.assert_array_equal(found.parent, cosines.argmax(0))
  np.testing.assert_allclose(found.cosine, cosines.max(0), rtol=1e-5)
  order = np.argsort(-cosines, axis=1)[:, :3]
  np.testing.assert_array_equal(found.children, order)
  expected = np.take_along_axis(cosines, order, 1)
  np.testing.assert_allclose(found.child_cosine, expected, rtol=1e-5)


def test_random_directions_have_the_decoders_covariance():
  rng = np.random.default_rng(1)
  wide = rng.normal(size=(20_000, 3)) * [10, 1, 1]  # nearly all along one axis
  narrow = np.eye(3, dtype=np.float32)
  along = matching.null_cosines(narrow[:1], wide.astype(np.float32))
  across = matching.null_cosines(narrow[1:2], wide.astype(np.float32))
  assert len(along) == 4_096
  assert np.abs(along).mean() > 0.7 > 0.5 > np.abs(across).mean()


@pytest.mark.parametrize("pairs", [1 << 24, 40])
def test_rows_in_common_are_counted(pairs, monkeypatch):
  monkeypatch.setattr(matching, "_PAIRS", pairs)
  rng = np.random.default_rng(2)
  n, w = rng.random((50, 6)) < 0.3, rng.random((50, 17)) < 0.2
  n[:, 2] = False  # never fires
  asked = np.array([[5, 16], [0, 3], [2, 1], [0, 0]])
  found = matching.cofiring(
    scipy.sparse.csr_array(n.astype(np.int32)),
    scipy.sparse.csr_array(w.astype(np.int32)),
    asked,
  )
  joint = n.T.astype(int) @ w.astype(int)
  np.testing.assert_array_equal(found.joint, joint[asked[:, 0], asked[:, 1]])
  np.testing.assert_array_equal(found.narrow, n.sum(0))
  np.testing.assert_array_equal(found.wide, w.sum(0))
  either = n.sum(0)[:, None] + w.sum(0)[None] - joint
  jaccard = joint / either
  np.testing.assert_allclose(found.jaccard, jaccard.max(1))
  expected = np.where(jaccard.max(1) > 0, jaccard.argmax(1), -1)
  np.testing.assert_array_equal(found.partner, expected)
  rates = matching.rates(found, asked)
  for p, (i, j) in enumerate(asked):
    a, b = n[:, i], w[:, j]
    if not a.any():
      assert np.isnan(rates["wide_given_narrow"][p])
      continue
    assert rates["wide_given_narrow"][p] == pytest.approx(b[a].mean())
    assert rates["narrow_given_wide"][p] == pytest.approx(a[b].mean())
    assert rates["phi"][p] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert rates["jaccard"][p] == pytest.approx((a & b).sum() / (a | b).sum())


def test_other_rows_are_refused():
  some = lambda rows: scipy.sparse.csr_array(np.ones((rows, 2), np.int32))
  with pytest.raises(ValueError, match="3 rows of the narrow SAE, 4 of the"):
    matching.cofiring(some(3), some(4), np.zeros((1, 2), int))


def test_only_the_first_rows_are_remembered():
  x = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
  sae = entries.on_device(made.identity(4))
  kept = matching.Activity(4, 17)
  for start in range(0, 30, 10):
    kept.add(active(sae, x[start : start + 10]), 10)
  np.testing.assert_array_equal(kept.matrix().toarray(), x[:17] > 0)
