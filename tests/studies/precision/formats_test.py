"""Rounding to each format: how far, to how many levels, and in what room."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.studies.precision import formats

SHAPE = (24, 40)


def _matrix(seed=0):
  return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def _back(stored):
  return np.asarray(stored.matrix(), np.float32)


@pytest.mark.parametrize("format, levels", [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("axis", [0, 1])
def test_integers_are_off_by_half_a_step_at_most(format, levels, axis):
  matrix = _matrix()
  stored = formats.store(matrix, format, (axis,))
  step = np.abs(matrix).max(axis=axis, keepdims=True) / levels
  np.testing.assert_allclose(stored.scale, step, rtol=1e-6)
  error = np.abs(_back(stored) - matrix)
  assert (error <= step / 2 * (1 + 1e-5)).all()
  assert error.max() > step.min() / 4  # it does round
  found = np.unique(stored.values)
  assert found.min() == -levels or found.max() == levels
  assert len(found) <= 2 * levels + 1
  # The largest of each column, or row, is kept.
  np.testing.assert_allclose(
    np.abs(_back(stored)).max(axis=axis), np.abs(matrix).max(axis=axis), 1e-6
  )


def test_four_bits_are_fifteen_levels():
  found = np.unique(formats.store(_matrix(), "int4", (0,)).values)
  assert found.tolist() == list(range(-7, 8))


@pytest.mark.parametrize("format", formats.FORMATS)
def test_what_a_format_can_say_stays_as_it_is(format):
  codes = np.random.default_rng(0).integers(-7, 8, SHAPE)
  codes[0] = 127 if format == "int8" else 7  # the largest says the step
  steps = 2.0 ** -(np.arange(SHAPE[1]) % 8)
  matrix = codes * steps[None]
  stored = formats.store(matrix.astype(np.float32), format, (0,))
  np.testing.assert_array_equal(_back(stored), matrix)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_column_of_zeros_stays_one(format):
  matrix = _matrix()
  matrix[:, 3] = 0
  back = _back(formats.store(matrix, format, (0,)))
  assert (back[:, 3] == 0).all() and np.isfinite(back).all()


def test_floats_are_rounded_to_nearest():
  matrix = _matrix()
  for format, bits in (("bfloat16", 8), ("float16", 11)):
    back = _back(formats.store(matrix, format, (0,)))
    assert (np.abs(back - matrix) <= np.abs(matrix) * 2.0**-bits).all()
    assert not np.array_equal(back, matrix)
  np.testing.assert_array_equal(
    _back(formats.store(matrix, "float32", (0,))), matrix
  )


def test_scales_can_span_several_axes():
  array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
  stored = formats.store(array, "int8", (0, 1))
  assert stored.scale.shape == (1, 1, 5)
  assert stored.matrix().shape == array.shape


@pytest.mark.parametrize(
  "format, expected",
  [
    ("float32", 24 * 40 * 4),
    ("bfloat16", 24 * 40 * 2),
    ("float16", 24 * 40 * 2),
    ("int8", 24 * 40 + 40 * 4),
    ("int4", 24 * 40 // 2 + 40 * 4),
  ],
)
def test_bytes(format, expected):
  assert formats.nbytes(SHAPE, format, (0,)) == expected


def test_an_unknown_format_is_refused():
  with pytest.raises(ValueError, match="int3.*expected one of float32"):
    formats.store(_matrix(), "int3", (0,))


def test_rounding_is_not_left_out():
  rounded = formats.rounded(jnp.asarray([1.001, 70_000.0]), "float16")
  assert rounded.dtype == jnp.float16
  assert np.asarray(rounded).tolist() == [1.0009765625, np.inf]
