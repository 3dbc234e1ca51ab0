"""Measured once: kept, shared, and the same however it was come by."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.studies import measure, splice
from gemmascope_jax.studies.replacements import Constant
from tests.data import tiny_gemma

SITE, POLICY = "res.1", tiny_gemma.POLICY
SHIFT = np.zeros(12)


def _constant(value):
  return Constant(jnp.full(12, value, jnp.float32))


@pytest.fixture(scope="module", name="lm")
def _lm():
  return tiny_gemma.lm()


@pytest.fixture(name="passes")
def _passes(monkeypatch):
  """The names of the replacements of each pass that is made."""
  made = []
  run = splice.run_batch

  def watched(lm, site, replacements, *args, **options):
    made.append(sorted(replacements))
    return run(lm, site, replacements, *args, **options)

  monkeypatch.setattr(splice, "run_batch", watched)
  return made


def _tokens(sequences=5, length=10):
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 200, (sequences, length)).astype(np.int32)
  tokens[:, 0] = 2
  return tokens


def _measure(lm, folder, replacements, tokens=None, **options):
  tokens = _tokens() if tokens is None else tokens
  return measure.measure(
    lm,
    SITE,
    replacements,
    tokens,
    POLICY,
    SHIFT,
    folder,
    batch=2,
    progress=False,
    **options,
  )


def _same(one, other):
  assert one[1].keys() == other[1].keys()
  pairs = [(one[0], other[0])] + [(one[1][n], other[1][n]) for n in one[1]]
  for a, b in pairs:
    for field in dataclasses.fields(a):
      np.testing.assert_array_equal(
        getattr(a, field.name), getattr(b, field.name)
      )


def test_what_is_there_is_not_measured_again(lm, tmp_path, passes):
  two = {"a": _constant(0.0), "b": _constant(1.0)}
  found = _measure(lm, tmp_path, two)
  assert passes == [["a", "b"]] * 3
  assert found[0].keep.shape == (6, 10)  # the last batch is padded
  _same(_measure(lm, tmp_path, two), found)
  assert len(passes) == 3


def test_another_replacement_costs_its_own_pass_only(lm, tmp_path, passes):
  one, two = {"a": _constant(0.0)}, {"a": _constant(0.0), "b": _constant(1.0)}
  _measure(lm, tmp_path, one)
  found = _measure(lm, tmp_path, two)
  assert passes == [["a"]] * 3 + [["b"]] * 3
  alone = _measure(lm, tmp_path / "alone", two)
  _same(found, alone)


def test_a_name_says_nothing_and_everything_else_does(lm, tmp_path, passes):
  _measure(lm, tmp_path, {"a": _constant(0.0)})
  _measure(lm, tmp_path, {"another name": _constant(0.0)})
  assert len(passes) == 3
  _measure(lm, tmp_path, {"a": _constant(0.5)})
  _measure(lm, tmp_path, {"a": _constant(0.0)}, _tokens()[::-1])
  _measure(lm, tmp_path, {"a": _constant(0.0)}, splice_special=True)
  assert len(passes) == 12


def test_damage_and_kills_cost_what_they_hit(lm, tmp_path, passes):
  two = {"a": _constant(0.0), "b": _constant(1.0)}
  found = _measure(lm, tmp_path, two)
  files = sorted(tmp_path.glob("*_00001.npz"))
  assert len(files) == 3
  files[0].write_bytes(files[0].read_bytes()[:-30])
  files[1].write_bytes(b"nothing")
  _same(_measure(lm, tmp_path, two), found)
  assert len(passes) == 4
