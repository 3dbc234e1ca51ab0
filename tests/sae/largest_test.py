"""The k-th largest against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import largest


def _values(dtype=np.float32):
  values = np.random.default_rng(0).normal(size=(9, 64)).astype(dtype)
  values[1] = -np.abs(values[1])  # none positive
  values[2, 5:] = -1  # at most five
  values[3] = np.abs(values[3]) * 1e-30
  values[4, ::2] = 0.5  # ties
  values[5, 3] = np.inf
  values[6, :32] = -0.0
  return values


@pytest.mark.parametrize("k", [1, 5, 33, 64, 100])
def test_kth_is_that_of_a_sort(k):
  for dtype in (np.float32, np.float64):
    values = _values(dtype)
    with jax.enable_x64(dtype == np.float64):
      rows = largest.kth(jnp.asarray(values), k)
      every = largest.kth(jnp.asarray(values), 3 * k, axis=None)
    assert rows.dtype == every.dtype == dtype
    for found, given, count in ((rows, values, k), (every, [values], 3 * k)):
      for one, row in zip(np.ravel(found), given, strict=True):
        down = np.sort(np.ravel(row))[::-1]
        expected = max(down[count - 1], 0) if count <= down.size else 0
        assert one == expected


@pytest.mark.parametrize("width", [48, 512, 4096])
def test_kth_or_less_is_not_above_it_and_admits_few_more(width):
  values = np.random.default_rng(1).normal(size=(32, width)).astype(np.float32)
  for axis, k in ((-1, 4), (None, 128)):
    exact = largest.kth(jnp.asarray(values), k, axis)
    less = largest.kth_or_less(jnp.asarray(values), k, axis)
    assert less.shape == exact.shape and (less <= exact).all()
    assert (values >= less).sum() <= 1.5 * (values >= exact).sum()


def test_keep_leaves_the_k_largest_and_their_ties():
  values = jnp.asarray([[3.0, 1, 2, 2], [-1, 4, -2, -3], [-1, -2, -3, -4]])
  np.testing.assert_array_equal(
    largest.keep(values, 2), [[3, 0, 2, 2], [0, 4, 0, 0], [0, 0, 0, 0]]
  )
  gradient = jax.grad(lambda v: (largest.keep(v, 2) ** 2).sum())(values)
  np.testing.assert_array_equal(
    gradient, [[6, 0, 4, 4], [0, 8, 0, 0], [0, 0, 0, 0]]
  )
