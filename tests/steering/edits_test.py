"""Edits against their equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae.sae import SAEConfig
from gemmascope_jax.steering import edits
from tests.steering import planted

SAE_ = planted.sae()
X = np.random.default_rng(1).normal(0, 1.5, (3, 7, 16)).astype(np.float32)


def _latents(sae, x):
  """float64 [..., M] of eq. 3, by NumPy."""
  p = jax.tree.map(np.float64, sae.params)
  pre = np.float64(x) @ p.w_enc + p.b_enc
  assert (
    np.abs(pre - p.threshold).min() > 1e-5
  )  # float32 can't choose otherwise
  return np.where(pre > p.threshold, np.maximum(pre, 0), 0)


def _close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_add_is_a_multiple_of_the_decoders_row():
  found = edits.add(SAE_, 5, -2.5, unit=3.0)(X)
  _close(found, np.float64(X) - 7.5 * planted.paris())
  np.testing.assert_array_equal(edits.add(SAE_, 5, 0.0)(X), X)


def test_direction_is_added_as_it_is():
  vector = np.random.default_rng(2).normal(size=16)
  _close(edits.direction(vector, 1.5)(X), np.float64(X) + 1.5 * vector)


@pytest.mark.parametrize("where", [False, True])
def test_clamp_is_its_equation(where):
  chosen, values, unit = [7, 5, 0], [2.0, 0.0, -1.0], [1.0, 1.0, 3.0]
  f = _latents(SAE_, X)[..., chosen]
  assert 0 < (f > 0).mean() < 1
  change = np.multiply(values, unit) - f
  if where:
    change = np.where(f > 0, change, 0)
  expected = np.float64(X) + change @ np.float64(SAE_.params.w_dec[chosen])
  found = edits.clamp(SAE_, chosen, values, unit=unit, only_where_active=where)(
    X
  )
  _close(found, expected)


def test_clamping_to_its_own_value_changes_nothing():
  x = X[:1, :1]
  own = np.asarray(SAE_.encode(jnp.asarray(x)))[0, 0]
  assert (own > 0).any()
  for chosen in (np.arange(SAE_.width), np.flatnonzero(own > 0)[:1]):
    # To rounding: a product of a few columns is not summed as that of all.
    np.testing.assert_allclose(
      edits.clamp(SAE_, chosen, own[chosen])(x), x, rtol=0, atol=2e-6
    )
    reader, _ = edits.reader(SAE_, chosen)
    its = np.asarray(reader.encode(jnp.asarray(x)))[0, 0]
    np.testing.assert_array_equal(edits.clamp(SAE_, chosen, its)(x), x)


def test_clamping_keeps_the_error_term():
  f = _latents(SAE_, X)
  p = jax.tree.map(np.float64, SAE_.params)
  error = X - (f @ p.w_dec + p.b_dec)
  f[..., 5] = 4.0
  _close(edits.clamp(SAE_, 5, 4.0)(X), f @ p.w_dec + p.b_dec + error)


def test_ablating_is_clamping_to_zero_and_only_where_it_fires():
  found = np.asarray(edits.ablate(SAE_, [3, 5])(X))
  np.testing.assert_array_equal(found, edits.clamp(SAE_, [3, 5], 0.0)(X))
  f = _latents(SAE_, X)[..., [3, 5]]
  _close(found, np.float64(X) - f @ np.float64(SAE_.params.w_dec[[3, 5]]))
  silent = (f == 0).all(axis=-1)
  assert silent.any()
  np.testing.assert_array_equal(found[silent], X[silent])


def test_a_topk_latent_is_read_among_all():
  topk = SAE_.replace(config=SAEConfig(site=planted.SITE, k=2))
  f = _latents(SAE_, X)
  f = np.where(f >= np.sort(f, axis=-1)[..., [-2]], f, 0)
  assert (f[..., 5] != _latents(SAE_, X)[..., 5]).any()
  _close(
    edits.ablate(topk, 5)(X), np.float64(X) - f[..., [5]] * planted.paris()
  )


def test_together_is_one_after_the_other():
  add, clamp = edits.add(SAE_, 3, 1.0), edits.clamp(SAE_, 5, 2.0)
  moved = np.float64(X) + np.float64(SAE_.params.w_dec[3])
  change = 2.0 - _latents(SAE_, moved)[..., [5]]
  found = edits.together(add, clamp)(X)
  _close(found, moved + change * planted.paris())
  other = np.asarray(edits.together(clamp, add)(X))
  assert np.abs(found - other).max() > 0.1


def test_at_leaves_other_positions_alone():
  where = np.random.default_rng(3).random((3, 7)) < 0.5
  add = edits.add(SAE_, 5, 3.0)
  found = edits.at(add, where)(X)
  np.testing.assert_array_equal(found, np.where(where[..., None], add(X), X))


def test_edits_of_one_kind_are_one_program():
  traced = []

  @jax.jit
  def run(edit, x):
    traced.append(edit)
    return edit(x)

  for made in (
    [edits.add(SAE_, 1, 2.0), edits.direction(np.ones(16), -1.0)],
    [edits.clamp(SAE_, 1, 2.0), edits.ablate(SAE_, 7)],
  ):
    traced.clear()
    for edit in made:
      _close(run(edit, X), edit(X))
    assert len(traced) == 1


def test_a_transcoder_adds_where_it_writes():
  config = {"site": "mlp_in.1", "target_site": "mlp.1"}
  transcoder = planted.sae(**config)
  assert edits.site_of(transcoder) == "mlp.1"
  assert edits.site_of(SAE_) == "res.1"
  _close(edits.add(transcoder, 5, 2.0)(X), np.float64(X) + 2 * planted.paris())
  with pytest.raises(ValueError, match=r"from mlp_in.1 to mlp.1.*can't be cl"):
    edits.ablate(transcoder, 5)


def _crosscoder():
  return planted.sae(site="res.0+res.1", parts=(("res.0", 8), ("res.1", 8)))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: edits.add(SAE_, 12, 1.0), r"latent 12: .* latents 0\.\.11"),
    (lambda: edits.clamp(SAE_, [0, -1], 1.0), r"latent -1: .* 0\.\.11"),
    (lambda: edits.clamp(SAE_, [3, 3], 1.0), r"\[3, 3\]: expected each once"),
    (lambda: edits.clamp(SAE_, [], 1.0), "expected a number, or several"),
    (lambda: edits.add(SAE_, 1.0, 1.0), "latents 1.0: expected a number"),
    (lambda: edits.add(SAE_, 5, np.nan), "strength is nan; expected a finite"),
    (lambda: edits.add(SAE_, 5, 1.0, unit=np.inf), "unit is inf"),
    (lambda: edits.add(SAE_, 5, 1e30), r"push of .*e\+29 .* at most 1e\+12"),
    (lambda: edits.clamp(SAE_, 5, 1e300), r"push of 1e\+300 .* smaller stren"),
    (lambda: edits.clamp(SAE_, 5, "high"), "values is 'high'; expected"),
    (lambda: edits.add(SAE_, 5, "high"), "strength is 'high'; expected"),
    (lambda: edits.clamp(SAE_, 5, [1.0, 2.0]), r"shape \(2,\) for 1 latents"),
    (lambda: edits.clamp(SAE_, 5, [np.nan]), "values is .*nan.*; expected fin"),
    (
      lambda: edits.direction(np.ones((2, 3)), 1.0),
      r"shape \(2, 3\): expected",
    ),
    (lambda: edits.direction([1.0, np.nan], 1.0), "of finite numbers"),
    (lambda: edits.direction(np.ones(3), 1.0)(X), "width 3 for .* width 16"),
    (lambda: edits.clamp(SAE_, 5, 1.0)(X[..., :8]), "width 16, got 8"),
    (lambda: edits.together(), "together.. of no edits"),
    (lambda: edits.at(abs, np.ones(3, bool)), r"shape \(3,\) .* expected bool"),
    (
      lambda: edits.at(edits.ablate(SAE_, 5), np.ones((3, 6), bool))(X),
      r"positions of shape \(3, 6\) .* shape \(3, 7, 16\)",
    ),
    (lambda: edits.add(_crosscoder(), 5, 1.0), "a crosscoder of res.0"),
    (lambda: edits.site_of(planted.sae(site=None)), "does not say at which"),
  ],
)
def test_errors(make, message):
  with pytest.raises(ValueError, match=message):
    make()
