"""What a batch makes of a dictionary: all latents, or the few that matter.

A family's loss is written once, on either of two views of the same product
(x - shift) W_enc^T:

  `Dense`   holds it for all M latents of every row;
  `Sparse`  only for the K latents of a row that the family says can have a
            value or a gradient, with their numbers. Its decoder product and
            all gradients touch nothing else (see `kernels`).

Letters: B batch rows, D width of the input, E width of the target, M latents,
L latents of a row in a view: M or K.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from gemmascope_jax.sae import kernels
from gemmascope_jax.sae.precision import dot


@flax.struct.dataclass
class Dense:
  """All latents of every row.

  Attributes:
    linear: float [B, M], (x - shift) W_enc^T.
    precision: of the products, see `precision`.
  """

  linear: jax.Array
  precision: str = flax.struct.field(pytree_node=False, default="highest")

  @classmethod
  def of(cls, x, shift, w_enc, precision) -> Dense:
    """From x [B, D], shift [D] and w_enc [M, D]."""
    return cls(_encode(x, shift, w_enc, precision), precision)

  def take(self, vector: jax.Array) -> jax.Array:
    """[1, M]: a number of each latent, to stand beside `linear`."""
    return vector[None, :]

  def decode(self, values: jax.Array, w_dec: jax.Array) -> jax.Array:
    """[B, E]: values [B, M] times w_dec [M, E]."""
    return _decode(values, w_dec, self.precision)

  def total(self, values: jax.Array) -> jax.Array:
    """[M]: sums over rows of values [B, M], differentiable."""
    return values.sum(axis=0)

  def among(self, first: int, last: int) -> jax.Array:
    """bool [1, M]: which are latents first..last-1."""
    number = jnp.arange(self.linear.shape[1])
    return ((number >= first) & (number < last))[None, :]


@flax.struct.dataclass
class Sparse:
  """The K latents of each row that may have a value or a gradient.

  Attributes:
    linear: float32 [B, K], (x - shift) W_enc^T of those; -inf past the last.
    indices: int32 [B, K], their numbers; 0 past the last.
    counts: int32 [B], how many of the K are used.
    width: M.
  """

  linear: jax.Array
  indices: jax.Array
  counts: jax.Array
  width: int = flax.struct.field(pytree_node=False)

  @classmethod
  def of(cls, x, shift, w_enc, chosen: kernels.Chosen) -> Sparse:
    """From x [B, D], shift [D], w_enc [M, D] and `kernels.choose`'s result."""
    linear = _encode_chosen(x, shift, w_enc, chosen)
    return cls(linear, chosen.indices, chosen.counts, w_enc.shape[0])

  def take(self, vector: jax.Array) -> jax.Array:
    """[B, K]: a number of each latent, to stand beside `linear`."""
    return _take(vector, self.indices, self.counts)

  def decode(self, values: jax.Array, w_dec: jax.Array) -> jax.Array:
    """[B, E]: values [B, K] times the rows of w_dec [M, E]."""
    return _decode_chosen(values, w_dec, self.indices, self.counts)

  def total(self, values: jax.Array) -> jax.Array:
    """[M]: sums over rows of values [B, K], differentiable."""
    return _total(values, self.indices, self.counts, self.width)

  def among(self, first: int, last: int) -> jax.Array:
    """bool [B, K]: which are latents first..last-1."""
    return (self.indices >= first) & (self.indices < last)


def product(x, shift, w_enc, precision) -> jax.Array:
  """(x - shift) W_enc^T: float [B, M] for x [B, D], w_enc [M, D]."""
  return dot(x - shift[None, :], w_enc, (1, 1), precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _encode(x, shift, w_enc, precision):
  return product(x, shift, w_enc, precision)


def _encode_forward(x, shift, w_enc, precision):
  return product(x, shift, w_enc, precision), (x, shift, w_enc)


def _encode_backward(precision, residuals, cotangent):
  # The derivative with respect to the shift needs the sum over rows only, not
  # a product of the size of the encoder's; that of x is dropped by the compiler
  # where x is data.
  x, shift, w_enc = residuals
  d_w_enc = dot(cotangent, x - shift[None, :], (0, 0), precision)
  total = cotangent.sum(axis=0, keepdims=True)
  d_shift = -dot(total, w_enc, (1, 0), "highest")[0]
  return dot(cotangent, w_enc, (1, 0), precision), d_shift, d_w_enc


_encode.defvjp(_encode_forward, _encode_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _decode(values, w_dec, precision):
  return dot(values, w_dec, (1, 0), precision)


def _decode_forward(values, w_dec, precision):
  return _decode(values, w_dec, precision), (values, w_dec)


def _decode_backward(precision, residuals, cotangent):
  values, w_dec = residuals
  d_values = dot(cotangent, w_dec, (1, 1), precision)
  return d_values, dot(values, cotangent, (0, 0), precision)


_decode.defvjp(_decode_forward, _decode_backward)


@jax.custom_vjp
def _encode_chosen(x, shift, w_enc, chosen):
  del x, shift, w_enc
  return chosen.values


def _encode_chosen_forward(x, shift, w_enc, chosen):
  return chosen.values, (x, shift, w_enc, chosen)


def _encode_chosen_backward(residuals, cotangent):
  x, shift, w_enc, chosen = residuals
  indices, counts = chosen.indices, chosen.counts
  cotangent = _used(cotangent, counts)
  total = kernels.total(cotangent, indices, counts, w_enc.shape[0])
  d_shift = -dot(total[None, :], w_enc, (1, 0), "highest")[0]
  d_w_enc = kernels.outer(
    cotangent, x - shift[None, :], indices, counts, w_enc.shape[0]
  )
  d_x = kernels.combine(cotangent, w_enc, indices, counts)
  return d_x, d_shift, d_w_enc, None


_encode_chosen.defvjp(_encode_chosen_forward, _encode_chosen_backward)


@jax.custom_vjp
def _decode_chosen(values, w_dec, indices, counts):
  return kernels.combine(values, w_dec, indices, counts)


def _decode_chosen_forward(values, w_dec, indices, counts):
  out = kernels.combine(values, w_dec, indices, counts)
  return out, (values, w_dec, indices, counts)


def _decode_chosen_backward(residuals, cotangent):
  values, w_dec, indices, counts = residuals
  d_values = kernels.dots(cotangent, w_dec, indices, counts)
  d_w_dec = kernels.outer(values, cotangent, indices, counts, w_dec.shape[0])
  return d_values, d_w_dec, None, None


_decode_chosen.defvjp(_decode_chosen_forward, _decode_chosen_backward)


@jax.custom_vjp
def _take(vector, indices, counts):
  del counts
  return vector[indices]


def _take_forward(vector, indices, counts):
  return vector[indices], (vector.shape[0], indices, counts)


def _take_backward(residuals, cotangent):
  width, indices, counts = residuals
  return (
    kernels.total(_used(cotangent, counts), indices, counts, width),
    None,
    None,
  )


_take.defvjp(_take_forward, _take_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _total(values, indices, counts, width):
  return kernels.total(_used(values, counts), indices, counts, width)


def _total_forward(values, indices, counts, width):
  return _total(values, indices, counts, width), (indices, counts)


def _total_backward(width, residuals, cotangent):
  del width
  indices, counts = residuals
  return _used(cotangent[indices], counts), None, None


_total.defvjp(_total_forward, _total_backward)


def _used(values, counts):
  """[B, K] with zeros past each row's count."""
  slot = jnp.arange(values.shape[1])[None, :]
  return jnp.where(slot < counts[:, None], values, 0)
