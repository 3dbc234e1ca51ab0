"""What a batch makes of a dictionary: all latents, or the few that matter.

A family's loss is written once, on either of two views of the same product
(x - shift) W_enc^T:

  `Dense`   holds it for all M latents of every row;
  `Sparse`  only for the few latents of a row that the family says can have a
            value or a gradient, with their numbers, in lines of K slots (see
            `kernels.Slots`). Its decoder product and all gradients touch
            nothing else.

Letters: B batch rows, D width of the input, E width of the target, M latents.
What a view holds is [B, M] or [V, K]; below, [R, L] stands for either.
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

  def mean(self, values: jax.Array) -> jax.Array:
    """A scalar: sums over latents of values [B, M], mean over rows."""
    return values.sum(axis=1).mean()

  def among(self, first: int, last: int) -> jax.Array:
    """bool [1, M]: which are latents first..last-1."""
    number = jnp.arange(self.linear.shape[1])
    return ((number >= first) & (number < last))[None, :]


@flax.struct.dataclass
class Sparse:
  """The latents of each row that may have a value or a gradient.

  Attributes:
    linear: float32 [V, K], (x - shift) W_enc^T of those; `kernels.NEVER` in
      slots that are not used.
    slots: which latents, see `kernels.Slots`.
    rows: B.
    width: M.
  """

  linear: jax.Array
  slots: kernels.Slots
  rows: int = flax.struct.field(pytree_node=False)
  width: int = flax.struct.field(pytree_node=False)

  @classmethod
  def of(cls, x, shift, w_enc, chosen: kernels.Chosen) -> Sparse:
    """From x [B, D], shift [D], w_enc [M, D] and `kernels.choose`'s result."""
    linear = _encode_chosen(x, shift, w_enc, chosen)
    return cls(linear, chosen.slots, x.shape[0], w_enc.shape[0])

  def take(self, vector: jax.Array) -> jax.Array:
    """[V, K]: a number of each latent, to stand beside `linear`."""
    return _take(vector, self.slots)

  def decode(self, values: jax.Array, w_dec: jax.Array) -> jax.Array:
    """[B, E]: values [V, K] times the rows of w_dec [M, E]."""
    return _decode_chosen(values, w_dec, self.slots, self.rows)

  def total(self, values: jax.Array) -> jax.Array:
    """[M]: sums over rows of values [V, K], differentiable."""
    return _total(values, self.slots, self.width)

  def mean(self, values: jax.Array) -> jax.Array:
    """A scalar: sums over latents of values [V, K], mean over rows.

    Values of slots that are not used must be zero.
    """
    return values.sum(axis=1).sum() / self.rows

  def among(self, first: int, last: int) -> jax.Array:
    """bool [V, K]: which are latents first..last-1."""
    return (self.slots.indices >= first) & (self.slots.indices < last)


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
  x, shift, w_enc, (_, slots, _) = residuals
  total = kernels.total(cotangent, slots, w_enc.shape[0])
  d_shift = -dot(total[None, :], w_enc, (1, 0), "highest")[0]
  d_w_enc = kernels.outer(cotangent, x - shift[None, :], slots, w_enc.shape[0])
  d_x = kernels.combine(cotangent, w_enc, slots, x.shape[0])
  return d_x, d_shift, d_w_enc, None


_encode_chosen.defvjp(_encode_chosen_forward, _encode_chosen_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _decode_chosen(values, w_dec, slots, rows):
  return kernels.combine(values, w_dec, slots, rows)


def _decode_chosen_forward(values, w_dec, slots, rows):
  out = kernels.combine(values, w_dec, slots, rows)
  return out, (values, w_dec, slots)


def _decode_chosen_backward(rows, residuals, cotangent):
  del rows
  values, w_dec, slots = residuals
  d_values = kernels.dots(cotangent, w_dec, slots)
  return (
    d_values,
    kernels.outer(values, cotangent, slots, w_dec.shape[0]),
    None,
  )


_decode_chosen.defvjp(_decode_chosen_forward, _decode_chosen_backward)


@jax.custom_vjp
def _take(vector, slots):
  return vector[slots.indices]


def _take_forward(vector, slots):
  return vector[slots.indices], (vector.shape[0], slots)


def _take_backward(residuals, cotangent):
  width, slots = residuals
  return kernels.total(cotangent, slots, width), None


_take.defvjp(_take_forward, _take_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _total(values, slots, width):
  return kernels.total(values, slots, width)


def _total_forward(values, slots, width):
  return kernels.total(values, slots, width), slots


def _total_backward(width, slots, cotangent):
  del width
  slot = jnp.arange(slots.indices.shape[1])[None, :]
  used = slot < slots.counts[:, None]
  return jnp.where(used, cotangent[slots.indices], 0), None


_total.defvjp(_total_forward, _total_backward)
