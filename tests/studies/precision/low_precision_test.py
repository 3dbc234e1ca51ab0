"""SAEs in every format: exact where they must be, planted flips, overflow."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies.precision import formats, low_precision
from gemmascope_jax.studies.replacements import FromSAE

D, M, E = 12, 40, 6
NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def _sae(k=None, skip=False, seed=0, target=D):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return SAE(
    Params(
      w_enc=draw(D, M),
      b_enc=draw(M),
      w_dec=draw(M, target) / np.float32(target**0.5),
      b_dec=draw(target),
      threshold=np.abs(draw(M)),
      w_skip=draw(D, target) if skip else None,
    ),
    SAEConfig(k=k),
  )


def _x(shape=(3, 5), seed=1):
  x = np.random.default_rng(seed).normal(size=(*shape, D))
  return jnp.asarray(x, jnp.float32)


KINDS = {
  "sae": _sae(),
  "topk": _sae(k=5),
  "skip transcoder": _sae(skip=True, target=E),
}


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_the_sae_itself_bit_for_bit(kind):
  sae, x = KINDS[kind], _x()
  run = jax.jit(lambda replacement, x: replacement.reconstruct(x))
  found = run(low_precision.in_format(sae, "float32"), x)
  expected = run(FromSAE(jax.tree.map(jnp.asarray, sae)), x)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["bfloat16", "float16"])
def test_every_step_is_rounded_as_numpy_rounds_it(kind, format):
  sae, x = KINDS[kind], _x()
  low = lambda values: np.asarray(values, np.float32).astype(NUMPY[format])
  wide = lambda values: np.asarray(values, np.float64)
  product = lambda a, b: low(wide(a) @ wide(b))
  add = lambda a, b: low(wide(a) + wide(b))
  p = sae.params
  pre = add(product(low(x), low(p.w_enc)), low(p.b_enc))
  latents = np.where(pre > low(p.threshold), np.maximum(pre, 0), 0)
  if sae.config.k:
    last = np.sort(wide(latents), axis=-1)[..., -sae.config.k :][..., :1]
    latents = np.where(wide(latents) >= last, latents, 0)
  out = add(product(latents, low(p.w_dec)), low(p.b_dec))
  if p.w_skip is not None:
    out = add(out, product(low(x), low(p.w_skip)))
  run = jax.jit(lambda replacement, x: replacement.reconstruct(x))
  found, active = run(low_precision.in_format(sae, format), x)
  np.testing.assert_array_equal(active, (latents > 0).sum(axis=-1))
  # A sum in another order may fall on the other side of a rounding edge.
  same = np.asarray(found) == wide(out)
  assert same.mean() > 0.95
  np.testing.assert_allclose(found, wide(out), atol=0.1)
  assert not np.allclose(found, FromSAE(sae).reconstruct(x)[0], atol=1e-6)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_integers_are_the_sae_of_the_rounded_weights(format):
  sae, x = KINDS["skip transcoder"], _x()
  low = low_precision.in_format(sae, format)
  matrices = {n: getattr(low, n).matrix() for n in ("w_enc", "w_dec", "w_skip")}
  same = FromSAE(sae.replace(params=sae.params.replace(**matrices)))
  for one, other in zip(low.reconstruct(x), same.reconstruct(x), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)
  assert low.w_enc.scale.shape == (1, M)  # one a latent
  assert low.w_dec.scale.shape == (M, 1)
  assert low.w_skip.scale.shape == (1, E)
  if format == "int4":
    assert not np.allclose(low.reconstruct(x)[0], sae(x), atol=1e-3)


def test_thresholds_at_a_rounding_edge_flip_what_is_planted():
  """bfloat16 has no number between 1 and 1.0078, float16 has some."""
  eye = np.eye(4, dtype=np.float32)
  threshold = np.array([1.0, 1.0, 1.001, 1.0], np.float32)
  sae = SAE(Params(eye, np.zeros(4), eye, np.zeros(4), threshold))
  x = jnp.asarray([[1.002, 1.5, 1.0015, 0.5]], jnp.float32)
  exact = low_precision.active(FromSAE(sae), x)
  assert np.asarray(exact).tolist() == [[True, True, True, False]]
  flips = {
    format: np.flatnonzero(
      exact != low_precision.active(low_precision.in_format(sae, format), x)
    ).tolist()
    for format in formats.FORMATS
  }
  assert flips.pop("bfloat16") == [0, 2]
  assert not any(flips.values())


def test_what_all_formats_can_say_flips_nothing():
  rng = np.random.default_rng(0)
  # Whole numbers of few bits, whose sums are such numbers too.
  whole = lambda *shape: rng.integers(-2, 3, shape).astype(np.float32)
  w_enc, w_dec = whole(D, M), whole(M, D)
  w_enc[0], w_dec[:, 0] = 7, 7  # so that a step of int4 is 1
  threshold = np.full(M, 0.5, np.float32)
  sae = SAE(Params(w_enc, whole(M), w_dec, whole(D), threshold))
  x = jnp.asarray(whole(20, D))
  exact = low_precision.active(FromSAE(sae), x)
  assert exact.any() and not exact.all()
  for format in ("bfloat16", "float16", "int4"):
    low = low_precision.in_format(sae, format)
    np.testing.assert_array_equal(low_precision.active(low, x), exact)


def test_an_overflow_is_seen_and_not_a_latent_fewer():
  sae = KINDS["topk"]
  x = _x().at[0, 0].set(jnp.where(jnp.arange(D) % 2 == 0, 1e5, -1e5))
  found, _ = low_precision.in_format(sae, "float16").reconstruct(x)
  bad = ~np.isfinite(np.asarray(found)).all(axis=-1)
  assert bad[0, 0] and bad.sum() == 1
  for format in ("bfloat16", "int4"):
    found, _ = low_precision.in_format(sae, format).reconstruct(x)
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize("format", formats.FORMATS)
def test_bytes_are_those_of_the_arrays(format):
  sae = KINDS["skip transcoder"]
  arrays = jax.tree.leaves(low_precision.in_format(sae, format))
  held = sum(each.nbytes for each in arrays)
  if format == "int4":
    held -= (D * M + M * E + D * E) // 2  # two to a byte
  assert low_precision.nbytes(sae, format) == held


def test_a_transcoder_keeps_what_it_reads():
  low = low_precision.in_format(_sae(), "int8", "mlp_in.1")
  assert low.reads == "mlp_in.1"
