"""A folded SAE on raw activations is the trained one on normalised ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.data.streams.joint import JointStream
from gemmascope_jax.sae import fold, sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families.dictionary import Sample
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.sae.train_step import Knobs
from gemmascope_jax.training.units import Units
from tests import rows_stream
from tests.sae.families import cases

SPREAD = np.geomspace(0.1, 30, 6)


def _float32(params):
  return {name: value.astype(np.float32) for name, value in params.items()}


def _skip(width, target_width):
  return np.random.default_rng(7).normal(size=(width, target_width))


@pytest.mark.parametrize("pre_encoder_bias", [True, False])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
  ("scale", "target_scale"),
  [(1e-2, None), (1.0, None), (37.5, None), (3.0, 0.5), (SPREAD, None)]
  + [(2.0, SPREAD), (SPREAD, 1.5), (SPREAD, SPREAD[::-1])],
)
def test_raw_space_equals_training_space(
  pre_encoder_bias, skip, scale, target_scale
):
  """The module's first two lines, in float64, on raw activations."""
  p = cases.params() | ({"w_skip": _skip(6, 6)} if skip else {})
  x = cases.rows(5) * scale
  c = scale if target_scale is None else target_scale
  pre = x / scale - p["b_dec"] * pre_encoder_bias
  pre = pre @ p["w_enc"].T + p["b_enc"]
  f = pre * (pre > p["threshold"])
  y = f @ p["w_dec"] + p["b_dec"]
  y = c * (y + x / scale @ p["w_skip"] if skip else y)
  sae = SAE(fold.fold(_float32(p), scale, pre_encoder_bias, target_scale))
  x = x.astype(np.float32)
  found = np.asarray(sae.encode(x))
  assert 0.05 < (f > 0).mean() < 0.95
  np.testing.assert_array_equal(found > 0, f > 0)
  gain = found.sum(axis=0) / f.sum(axis=0)  # n, one for each latent
  np.testing.assert_allclose(found, gain * f, rtol=1e-4, atol=1e-4 * gain.max())
  np.testing.assert_allclose(
    np.linalg.norm(sae.params.w_dec, axis=1), np.ones(32), rtol=1e-6
  )
  np.testing.assert_allclose(sae(x), y, rtol=1e-3, atol=1e-4 * np.abs(y).max())


def test_one_scale_leaves_the_matrices_as_they_are():
  """Gemma Scope, appendix A."""
  p = _float32(cases.params() | {"w_skip": _skip(6, 6)})
  found = fold.fold(p, 37.5, True)
  np.testing.assert_array_equal(found.w_enc, p["w_enc"].T)
  for name in ("w_dec", "w_skip"):
    np.testing.assert_array_equal(getattr(found, name), p[name])
  np.testing.assert_array_equal(found.b_dec, np.float32(37.5) * p["b_dec"])


def test_inputs_and_targets_may_differ_in_width():
  p = cases.params() | {"w_skip": _skip(4, 6)}
  p["w_enc"] = p["w_enc"][:, :4]
  x = cases.rows(5, width=4)
  pre = x / 3 @ p["w_enc"].T + p["b_enc"]
  f = pre * (pre > p["threshold"])
  y = 3 * (f @ p["w_dec"] + p["b_dec"] + x / 3 @ p["w_skip"])
  sae = SAE(fold.fold(_float32(p), 3.0, False))
  assert (sae.site_width, sae.target_width, sae.width) == (4, 6, 32)
  np.testing.assert_allclose(sae(x.astype(np.float32)), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, np.inf, np.array([1.0, 0.0] * 3)])
def test_folding_refuses_scales_that_are_not_positive(scale):
  with pytest.raises(ValueError, match="scale C is .*; expected a positive"):
    fold.fold(cases.params(), scale, True)


RECIPE = Recipe(
  width=16,
  batch_size=32,
  steps=20,
  learning_rate=1e-2,
  sparsity_coefficient=1e-2,
  bandwidth=0.1,
  learning_rate_warmup_steps=2,
  sparsity_warmup_steps=2,
  threshold_init=0.1,
  bias_init="mean",
)
TRANSCODER = {"encoder_init": "he_uniform", "pre_encoder_bias": False}


def _stream(kind, factor):
  inputs = rows_stream.RowsStream(32, factor=factor)
  other = rows_stream.RowsStream(32, site="att.0", width=5, factor=factor)
  if kind == "sae":
    return inputs
  if kind == "crosscoder":
    return JointStream([inputs, other])
  return JointStream([inputs], other)


def _released(kind, factor):
  """Trains on rows times `factor`; the SAE, its inputs and its scale."""
  options = {} if kind in ("sae", "crosscoder") else dict(TRANSCODER)
  if kind.startswith("skip transcoder"):
    options |= {"skip": True, "normalise": "each"}
  options["centre_inputs"] = kind.endswith(", centred")
  recipe = dataclasses.replace(RECIPE, **options)
  stream = _stream(kind, factor)
  units = Units.of(stream, recipe)
  sample = np.concatenate([stream.batch(step) for step in range(20)])
  means = [jnp.asarray(m, jnp.float32) for m in (units.x_mean, units.y_mean)]
  sample = Sample(*units.inputs_and_targets(sample), *means)
  state = sweep.init_fn(recipe)(jax.random.key(0), sample)
  for i in range(recipe.steps):
    x, y = units.inputs_and_targets(jnp.asarray(stream.batch(i)))
    state, _ = sweep.step_fn(recipe)(state, x, y, Knobs.of(recipe))
  params = fold.fold(
    state.params,
    units.scale,
    recipe.pre_encoder_bias,
    units.target_scale,
    units.centre,
  )
  rows = np.concatenate([stream.batch(step) for step in range(20, 60)])
  return SAE(params), rows[:, : params.w_enc.shape[0]]


@pytest.mark.parametrize(
  ("factor", "tolerance"),
  [(1e-2, 3e-5), (1e2, 3e-5), (2.0**-7, 1e-6), (2.0**7, 1e-6)],
)
@pytest.mark.parametrize(
  "kind",
  [
    "sae",
    "transcoder",
    "transcoder, centred",
    "skip transcoder",
    "skip transcoder, centred",
    "crosscoder",
  ],
)
def test_training_does_not_depend_on_the_activations_scale(
  kind, factor, tolerance
):
  """Trained on c x and folded it is the same, for c of any size.

  For a power of two the normalised rows are the same numbers; otherwise they
  differ in their last bits, and so does what is learned.
  """
  (base, rows), (other, scaled) = _released(kind, 1.0), _released(kind, factor)
  for name, value in vars(base.params).items():
    moved = getattr(other.params, name)
    if value is None:
      assert moved is None
      continue
    same = 1.0 if name.startswith("w_") else factor
    size = np.abs(same * value).max()
    np.testing.assert_allclose(
      moved, same * value, rtol=tolerance, atol=tolerance * size, err_msg=name
    )
  fires = np.asarray(base.encode(rows) > 0)
  assert 0.02 < fires.mean() < 0.98
  np.testing.assert_array_equal(fires, other.encode(scaled) > 0)
  np.testing.assert_allclose(
    other(scaled), factor * base(rows), rtol=1e-3, atol=1e-4 * factor * 50
  )


@pytest.mark.parametrize("skip", [False, True])
def test_a_centred_transcoder_folds_to_one_of_raw_inputs(skip):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {
    "w_enc": draw(30, 6),
    "b_enc": draw(30),
    "w_dec": draw(30, 4),
    "b_dec": draw(4),
    "threshold": np.abs(draw(30)),
  }
  if skip:
    params["w_skip"] = draw(6, 4)
  centre, a, c = 3 + draw(6).astype(np.float64), 2.5, 0.5
  x = 10 * draw(50, 6)
  inner = x / a - centre[None]
  pre = inner @ params["w_enc"].T + params["b_enc"]
  latents = np.where(pre > params["threshold"], np.maximum(pre, 0), 0)
  y = latents @ params["w_dec"] + params["b_dec"]
  y = y + (inner @ params["w_skip"] if skip else 0)
  sae = SAE(fold.fold(params, a, False, c, centre))
  np.testing.assert_allclose(sae(x), c * y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_unfolding_is_the_inverse_of_folding(skip, bias, centred):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {
    "w_enc": draw(30, 6),
    "b_enc": draw(30),
    "w_dec": draw(30, 6),
    "b_dec": draw(6),
    "threshold": np.abs(draw(30)),
  }
  if skip:
    params["w_skip"] = draw(6, 6)
  rest = 2.5, bias, 0.5, draw(6) if centred else None
  found = fold.unfold(fold.fold(params, *rest), *rest)
  assert found.keys() == params.keys()
  for name, value in params.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
