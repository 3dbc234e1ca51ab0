"""Attention in blocks against the definition, row by row in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.gemma import attention


def _inputs(tokens, heads=4, kv_heads=2, width=6):
  rng = np.random.default_rng(1)
  draw = lambda n: rng.normal(size=(2, tokens, n, width)).astype(np.float32)
  return draw(heads), draw(kv_heads), draw(kv_heads)


def _direct(q, k, v, mask, window, softcap):
  """One query at a time; zeros where a query sees no key."""
  out = np.zeros(q.shape)
  for s, i, n in np.ndindex(q.shape[:3]):
    group = n * k.shape[2] // q.shape[2]
    first = 0 if window is None else max(0, i - window + 1)
    seen = [j for j in range(first, i + 1) if mask is None or mask[s, j]]
    if not seen:
      continue
    scores = np.float64(k[s, seen, group]) @ np.float64(q[s, i, n])
    if softcap is not None:
      scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores - scores.max())
    out[s, i, n] = weights @ np.float64(v[s, seen, group]) / weights.sum()
  return out


@pytest.mark.parametrize(
  ("window", "block"),
  [(None, 5), (None, None), (1, 5), (6, 5), (6, 16), (22, None), (100, 16)],
)
def test_equals_the_definition(window, block):
  q, k, v = _inputs(tokens=23)
  found = jax.jit(
    lambda q, k, v: attention.attend(
      q, k, v, window=window, softcap=None, precision="highest", block=block
    )
  )(q, k, v)
  expected = _direct(q, k, v, None, window, None)
  np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_long_sequence_with_softcap_and_padding(kv_heads):
  # Longer than the smallest block, so that the default takes several.
  q, k, v = _inputs(tokens=150, kv_heads=kv_heads)
  mask = np.ones((2, 150), bool)
  mask[0, :20] = False
  mask[1, 100:] = False
  found = jax.jit(
    lambda q, k, v: attention.attend(
      q, k, v, mask, window=60, softcap=1.5, precision="highest"
    )
  )(q, k, v)
  expected = _direct(q, k, v, mask, 60, 1.5)
  np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=2e-6)
  assert np.isfinite(found).all()


def test_the_window_is_exact():
  # Equal scores: each output is the mean over the keys that are seen.
  tokens, window = 9, 4
  q = k = np.zeros((1, tokens, 1, tokens), np.float32)
  v = np.eye(tokens, dtype=np.float32)[None, :, None]
  found = attention.attend(
    q, k, v, window=window, softcap=None, precision="highest", block=3
  )
  i, j = np.mgrid[:tokens, :tokens]
  sees = (i >= j) & (i - j < window)
  np.testing.assert_array_equal(np.asarray(found)[0, :, 0] > 0, sees)


def test_nothing_to_see_gives_no_nan_even_in_gradients():
  q, k, v = _inputs(tokens=7)
  mask = np.zeros((2, 7), bool)
  mask[1, 5:] = True

  def total(q, k, v):
    found = attention.attend(
      q, k, v, mask, window=3, softcap=2.0, precision="highest", block=4
    )
    return jnp.sum(jnp.square(found)), found

  gradients, found = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
    q, k, v
  )
  for array in (found, *gradients):
    assert np.isfinite(array).all()


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize(("window", "block"), [(None, 5), (4, 5), (1, None)])
def test_gradients_of_own_positions_only(kv_heads, window, block):
  """Against the gradient of one query's output at a time."""
  q, k, v = _inputs(tokens=13, kv_heads=kv_heads)
  mask = np.ones((2, 13), bool)
  mask[1, :3] = False
  weights = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)

  def attend(q, k, v, across):
    return attention.attend(
      q,
      k,
      v,
      mask,
      window=window,
      softcap=1.5,
      precision="highest",
      block=block,
      across_positions=across,
    )

  np.testing.assert_array_equal(attend(q, k, v, False), attend(q, k, v, True))
  total = lambda *x: (weights * attend(*x, False)).sum()
  found = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)

  @jax.jit
  @jax.vmap
  def brute(here):
    one = lambda *x: (weights * attend(*x, True))[:, here].sum()
    return jax.grad(one, argnums=(0, 1, 2))(q, k, v)

  whole = brute(np.arange(13))
  for mine, slope in zip(found, whole, strict=True):
    own = np.stack([slope[t][:, t] for t in range(13)], axis=1)
    np.testing.assert_allclose(mine, own, atol=2e-5)
