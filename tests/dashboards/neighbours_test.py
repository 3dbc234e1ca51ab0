"""Nearest latents against all pairs."""

import numpy as np
import pytest
import scipy.sparse

from gemmascope_jax.dashboards import neighbours


def test_by_direction_is_the_cosine_among_the_living():
  rng = np.random.default_rng(0)
  w_dec = rng.normal(size=(40, 6)).astype(np.float32)
  alive = rng.random(40) < 0.7
  chosen = np.array([3, 17, 25])
  found = neighbours.by_direction(w_dec, chosen, alive, count=5)
  unit = w_dec.astype(np.float64)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  for place, latent in enumerate(chosen):
    cosine = unit @ unit[latent]
    cosine[~alive] = cosine[latent] = -np.inf
    expected = np.argsort(-cosine)[:5]
    np.testing.assert_array_equal(found.latents[place], expected)
    np.testing.assert_allclose(found.scores[place], cosine[expected], atol=1e-6)
  assert found.of(0)[0] == [
    found.latents[0, 0],
    round(float(found.scores[0, 0]), 4),
  ]


def test_by_firing_is_the_jaccard_index():
  rng = np.random.default_rng(1)
  fires = rng.random((300, 20)) < rng.uniform(0.02, 0.3, 20)
  fires[:, 4] = fires[:, 9]  # twins
  fires[:, 7] = False
  matrix = scipy.sparse.csr_array(fires.astype(np.int32))
  chosen = np.array([4, 7, 12])
  found = neighbours.by_firing(matrix, chosen, count=19)
  for place, latent in enumerate(chosen):
    both = (fires & fires[:, [latent]]).sum(axis=0)
    either = (fires | fires[:, [latent]]).sum(axis=0)
    index = np.where(both > 0, both / np.maximum(either, 1), -1)
    index[latent] = -1
    order = [i for i in np.argsort(-index, kind="stable") if index[i] > 0]
    real = found.latents[place] >= 0
    assert found.latents[place][real].tolist() == order
    np.testing.assert_allclose(found.scores[place][real], index[order])
    assert np.isnan(found.scores[place][~real]).all()
  assert found.of(0)[0] == [9, 1.0] and found.of(1) == []


def test_nobody_alone_has_neighbours():
  w_dec = np.eye(3, dtype=np.float32)
  alone = neighbours.by_direction(
    w_dec, np.array([1]), np.array([False, True, False])
  )
  assert alone.of(0) == []
  dead = neighbours.by_direction(w_dec, np.array([1]), np.zeros(3, bool))
  assert dead.of(0) == [] and dead.latents.shape == (1, 8)


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_at_most(count):
  w_dec = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
  found = neighbours.by_direction(
    w_dec, np.arange(9), np.ones(9, bool), count=count
  )
  assert found.latents.shape == (9, count) and (found.latents >= 0).all()
