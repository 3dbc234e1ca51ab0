"""An SAE in a number format, to be spliced like any other replacement.

In bfloat16 and float16 the SAE computes in that format: what it reads, its
weights, biases and thresholds, the pre-activations and their comparison with
the thresholds, the latents and the reconstruction are its numbers; only the
sums inside a product are float32. In int8 and int4 only the matrices are
rounded, and all is computed in float32. Encoder and decoder have one scale a
latent (a column of W_enc, a row of W_dec), a skip connection one an output.

A number that overflows float16 is infinite, and what it makes of the
reconstruction is not a number: never a latent that silently falls out.

Letters: D width of the input, E width of the output, M latents.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from gemmascope_jax.sae import largest
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.precision import formats
from gemmascope_jax.studies.replacements import FromSAE, Replacement

# What a scale is shared along: the inputs of a latent, its outputs, and the
# inputs of an output.
_ENCODER, _DECODER, _SKIP = (0,), (1,), (0,)


class LowPrecisionSAE(Replacement):
  """An SAE, transcoder or skip transcoder in a format.

  Attributes:
    w_enc: [D, M].
    b_enc: [M].
    w_dec: [M, E].
    b_dec: [E].
    threshold: [M].
    w_skip: [D, E] of a skip transcoder, else None.
    k: as `SAEConfig.k`; rounding makes more latents equal the last that is
      kept, and all of them are.
    format: one of `formats.FORMATS`.
  """

  w_enc: formats.Stored
  b_enc: jax.Array
  w_dec: formats.Stored
  b_dec: jax.Array
  threshold: jax.Array
  w_skip: formats.Stored | None = None
  k: int | None = flax.struct.field(pytree_node=False, default=None)
  format: str = flax.struct.field(pytree_node=False, default="float32")

  def encode(self, x: jax.Array) -> jax.Array:
    """Latents [..., M] of x [..., D], in the format's dtype."""
    x = self._round(x)
    pre = self._add(self._product(x, self.w_enc), self.b_enc)
    active = pre > _along(self.threshold, pre)
    latents = jnp.where(active, jnp.maximum(pre, 0), 0)
    if self.k is not None:
      # In float32, which orders them alike.
      kept = largest.keep(latents.astype(jnp.float32), self.k)
      latents = kept.astype(latents.dtype)
    if self.format != "float16":
      return latents
    return jnp.where(jnp.isnan(pre), jnp.nan, latents)

  def reconstruct(self, x):
    """Decodes the encoded activation, both in the format."""
    latents = self.encode(x)
    active = (latents > 0).sum(axis=-1).astype(jnp.float32)
    out = self._add(self._product(latents, self.w_dec), self.b_dec)
    if self.w_skip is not None:
      out = self._add(out, self._product(self._round(x), self.w_skip))
    return out.astype(jnp.float32), active

  def _round(self, values):
    return formats.rounded(values, self.format)

  def _product(self, x, weights):
    """x times a matrix, summed in float32, in the format's dtype."""
    # Full float32 for float32, as in `SAE`; products of shorter numbers are
    # exact in it anyway.
    found = jnp.matmul(
      x,
      weights.matrix(),
      precision="highest",
      preferred_element_type=jnp.float32,
    )
    return self._round(found)

  def _add(self, values, other):
    """A sum in the format's dtype; `other` may be a vector."""
    total = values.astype(jnp.float32) + _along(other, values).astype(
      jnp.float32
    )
    return self._round(total)


def in_format(
  sae: SAE, format: str, reads: str | None = None
) -> LowPrecisionSAE:
  """An SAE with its numbers rounded to a format.

  Args:
    sae: in float32.
    format: one of `formats.FORMATS`.
    reads: see `Replacement`.

  Raises:
    ValueError: an unknown format.
  """
  formats.check(format)
  params = sae.params
  vector = lambda values: jnp.asarray(values).astype(formats.dtype(format))
  skip = params.w_skip
  return LowPrecisionSAE(
    w_enc=formats.store(params.w_enc, format, _ENCODER),
    b_enc=vector(params.b_enc),
    w_dec=formats.store(params.w_dec, format, _DECODER),
    b_dec=vector(params.b_dec),
    threshold=vector(params.threshold),
    w_skip=None if skip is None else formats.store(skip, format, _SKIP),
    k=sae.config.k,
    format=format,
    reads=reads,
  )


def nbytes(sae: SAE, format: str) -> int:
  """What an SAE takes in a format."""
  params, each = sae.params, formats.dtype(format).itemsize
  matrices = [(params.w_enc, _ENCODER), (params.w_dec, _DECODER)]
  if params.w_skip is not None:
    matrices.append((params.w_skip, _SKIP))
  vectors = (params.b_enc, params.b_dec, params.threshold)
  return sum(formats.nbytes(w.shape, format, axes) for w, axes in matrices) + (
    each * sum(vector.shape[0] for vector in vectors)
  )


def active(replacement: FromSAE | LowPrecisionSAE, x: jax.Array) -> jax.Array:
  """Which latents are active: bool [..., M] for x [..., D]."""
  if isinstance(replacement, LowPrecisionSAE):
    return replacement.encode(x) > 0
  return replacement.sae.encode(x) > 0


def _along(vector: jax.Array, like: jax.Array) -> jax.Array:
  """[M] with the axes of [..., M]; anything of these axes as it is."""
  return vector.reshape((1,) * (like.ndim - vector.ndim) + vector.shape)
