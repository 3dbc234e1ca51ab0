import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.gemma import layers


def test_rms_norm_is_computed_in_float32_with_its_gain():
  rng = np.random.default_rng(0)
  x = jnp.asarray(30 * rng.normal(size=(2, 3, 64)), jnp.bfloat16)
  scale = jnp.asarray(rng.normal(size=64), jnp.bfloat16)
  found = layers.rms_norm(x, scale, 1e-6)
  exact = np.float64(x)
  exact = exact / np.sqrt(np.mean(exact**2, -1, keepdims=True) + 1e-6)
  exact = exact * (1 + np.float64(scale))
  # One rounding, at the end: the nearest bfloat16, and not one beside it.
  assert found.dtype == jnp.bfloat16
  nearest = jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16)
  np.testing.assert_array_equal(found, nearest)


def test_between_comes_before_the_gain():
  x = jnp.asarray([[3.0, 4.0]])
  scale = jnp.asarray([1.0, -1.0])
  seen = []

  def between(y):
    seen.append(np.asarray(y))
    return jnp.ones_like(y)

  found = layers.rms_norm(x, scale, 0.0, between)
  np.testing.assert_allclose(seen[0], [[3 / 12.5**0.5, 4 / 12.5**0.5]])
  np.testing.assert_array_equal(found, [[2.0, 0.0]])


@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_rope_turns_each_pair_by_its_angle(factor):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 3, 8))
  positions = np.array([[0, 1, 2, 3, 4], [0, 0, 7, 8, 9]])
  tables = layers.rope_tables(jnp.asarray(positions), 8, 100.0, factor)
  found = layers.apply_rope(jnp.asarray(x, jnp.float32), tables, 0.5)
  pairs = x[..., :4] + 1j * x[..., 4:]
  angles = positions[..., None, None] / factor / 100.0 ** (np.arange(4) / 4)
  turned = 0.5 * pairs * np.exp(1j * angles)
  expected = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(found, expected, atol=1e-5)
