"""What x and y are for an SAE, a transcoder and a crosscoder."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.data.streams.joint import JointStream
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.training.units import Units
from tests.rows_stream import RowsStream

TRANSCODER = Recipe(encoder_init="he_uniform", pre_encoder_bias=False)
KINDS = ("sae", "transcoder", "transcoder, each", "crosscoder")


def _parts():
  return RowsStream(64), RowsStream(64, site="att.0", width=5, factor=7.0)


def _norm(stream):
  return np.sqrt(stream.mean_square_norm)


def _expected(kind):
  first, second = _parts()
  x, y = first.batch(3), second.batch(3)
  if kind == "sae":
    return first, Recipe(), x / _norm(first), x / _norm(first)
  if kind == "transcoder":
    stream = JointStream([first], second)
    return stream, TRANSCODER, x / _norm(first), y / _norm(first)
  if kind == "transcoder, each":
    stream = JointStream([first], second)
    recipe = dataclasses.replace(TRANSCODER, normalise="each")
    return stream, recipe, x / _norm(first), y / _norm(second)
  both = np.hstack([x / _norm(first), y / _norm(second)])
  return JointStream([first, second]), Recipe(), both, both


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_targets(kind):
  stream, recipe, x, y = _expected(kind)
  units = Units.of(stream, recipe)
  found = units.inputs_and_targets(jnp.asarray(stream.batch(3)))
  assert [each.dtype for each in found] == [jnp.float32] * 2
  for each, expected in zip(found, (x, y), strict=True):
    np.testing.assert_allclose(each, expected, rtol=1e-6)
  assert (found[0] is found[1]) == ("transcoder" not in kind)


def test_a_transcoders_inputs_can_be_centred():
  stream, recipe, x, y = _expected("transcoder")
  recipe = dataclasses.replace(recipe, centre_inputs=True)
  units = Units.of(stream, recipe)
  found = units.inputs_and_targets(jnp.asarray(stream.batch(3)))
  mean = stream.parts[0].mean / _norm(stream.parts[0])
  np.testing.assert_allclose(found[0], x - mean[None], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found[1], y, rtol=1e-6)
  assert not units.x_mean.any()
  with pytest.raises(ValueError, match="centre_inputs is set, which is for"):
    Units.of(stream.parts[0], Recipe(centre_inputs=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalised", [True, False])
def test_moments_are_those_of_the_rows_in_training_units(kind, normalised):
  stream, recipe, _, _ = _expected(kind)
  if not normalised:
    recipe = dataclasses.replace(recipe, normalise="none")
  units = Units.of(stream, recipe)
  parts = stream.parts if kind != "sae" else (stream,)
  every = jnp.asarray(np.hstack([part.x for part in parts]))
  x, y = (
    np.asarray(each, np.float64) for each in units.inputs_and_targets(every)
  )
  np.testing.assert_allclose(units.x_mean, x.mean(axis=0), rtol=1e-5)
  np.testing.assert_allclose(units.y_mean, y.mean(axis=0), rtol=1e-5)
  assert units.y_variance == pytest.approx(y.var(axis=0).sum(), rel=1e-5)
  if normalised:
    squares = np.square(x).sum(axis=1).mean()
    assert squares == pytest.approx(2 if kind == "crosscoder" else 1, rel=1e-5)
  else:
    assert set(units.scales.values()) == {1.0}


@pytest.mark.parametrize(
  ("normalise", "change", "says"),
  [
    ("rms", {"mean_square_norm": 0.0}, "mean square norm of res.0 is 0.0"),
    ("rms", {"mean_square_norm": np.inf}, "finite and not all zero"),
    ("none", {}, "all the same"),
    ("rms", {}, "all the same"),
  ],
)
def test_rows_that_teach_nothing_are_refused(normalise, change, says):
  stream = RowsStream(64)
  stream.mean = np.full(8, 0.7)
  stream.mean_square_norm = change.get(
    "mean_square_norm", float(np.square(stream.mean).sum())
  )
  with pytest.raises(ValueError, match=says):
    Units.of(stream, Recipe(normalise=normalise))


def test_names_and_scales():
  first, second = _parts()
  units = Units.of(JointStream([first, second]), Recipe())
  assert (units.site, units.target_site) == ("res.0+att.0", None)
  assert units.parts == (("res.0", 8), ("att.0", 5))
  assert units.scales == {"res.0": _norm(first), "att.0": _norm(second)}
  units = Units.of(JointStream([first], second), TRANSCODER)
  assert (units.site, units.target_site) == ("res.0", "att.0")
  assert units.parts == ()
  assert units.scales == {"res.0": _norm(first), "att.0": _norm(first)}
  assert Units.of(first, Recipe()).scales == {"res.0": _norm(first)}


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"encoder_init": "transpose"}, "recipe.encoder_init is 'transpose'"),
    ({"pre_encoder_bias": True}, "recipe.pre_encoder_bias is True"),
  ],
)
def test_a_transcoder_has_its_own_recipe(changes, says):
  first, second = _parts()
  recipe = dataclasses.replace(TRANSCODER, **changes)
  with pytest.raises(ValueError, match=f"{says}.*transcoder .to att.0."):
    Units.of(JointStream([first], second), recipe)


@pytest.mark.parametrize("several", [False, True])
def test_only_a_transcoder_may_skip(several):
  stream = JointStream(_parts()) if several else _parts()[0]
  with pytest.raises(ValueError, match="recipe.skip is set"):
    Units.of(stream, Recipe(skip=True))
