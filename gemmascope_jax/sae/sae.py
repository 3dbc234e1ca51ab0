"""A finished SAE, transcoder or crosscoder: encode and decode raw activations.

An SAE reconstructs what it reads, and so does a crosscoder, which reads several
sites side by side; a transcoder reconstructs another site.

Letters: D width of the input, E width of the output (D but for a transcoder),
M latents.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.sae import largest


@flax.struct.dataclass
class Params:
  """A finished SAE's arrays, all float32, in raw activation space.

  Attributes:
    w_enc: [D, M].
    b_enc: [M].
    w_dec: [M, E], rows of unit length.
    b_dec: [E].
    threshold: [M], not negative.
    w_skip: [D, E] of a skip transcoder, else None.
  """

  w_enc: jax.Array
  b_enc: jax.Array
  w_dec: jax.Array
  b_dec: jax.Array
  threshold: jax.Array
  w_skip: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class SAEConfig:
  """What an SAE is for; static under jit.

  Attributes:
    family: which family it was trained as.
    k: if set, a row keeps only its k largest latents: TopK; else None.
    site: where it reads, and writes unless it is a transcoder, such as
      "res.12"; of a crosscoder "res.5+res.9"; None if unknown.
    target_site: where a transcoder writes, such as "mlp.12"; else None.
    parts: (site, width) of each of a crosscoder's sites, in the order in which
      they stand side by side; else empty.
    model: label of the language model; None if unknown.
    token_policy: the positions that it was trained on; None if unknown.
    provenance: JSON of the training recipe, data and hashes; "{}" if unknown.
  """

  family: str = "jumprelu"
  k: int | None = None
  site: str | None = None
  target_site: str | None = None
  parts: tuple[tuple[str, int], ...] = ()
  model: str | None = None
  token_policy: TokenPolicy | None = None
  provenance: str = "{}"

  def details(self) -> dict[str, Any]:
    """The provenance as a dict."""
    return json.loads(self.provenance)

  @property
  def columns(self) -> dict[str, slice]:
    """Which columns of its activations are which of a crosscoder's sites."""
    ends = itertools.accumulate(width for _, width in self.parts)
    return {
      site: slice(end - width, end)
      for (site, width), end in zip(self.parts, ends, strict=True)
    }


@flax.struct.dataclass
class SAE:
  """A sparse autoencoder on raw activations (everything folded).

  Attributes:
    params: float32 arrays, see `Params`.
    config: see `SAEConfig`.
  """

  params: Params
  config: SAEConfig = flax.struct.field(
    pytree_node=False, default_factory=SAEConfig
  )

  @property
  def width(self) -> int:
    """Number of latents M."""
    return self.params.w_dec.shape[0]

  @property
  def site_width(self) -> int:
    """Width D of the activations that it reads."""
    return self.params.w_enc.shape[0]

  @property
  def target_width(self) -> int:
    """Width E of the activations that it writes."""
    return self.params.w_dec.shape[1]

  def pre_activations(self, x: jax.Array) -> jax.Array:
    """x W_enc + b_enc: float32 [..., M] for x [..., D]."""
    if x.shape[-1] != self.site_width:
      raise ValueError(
        f"SAE at {self.config.site or 'an unnamed site'} reads activations of"
        f" width {self.site_width}, got {x.shape[-1]}: it was trained on"
        " another model or site"
      )
    pre = _product(x.astype(jnp.float32), self.params.w_enc)
    return pre + _broadcast(self.params.b_enc, pre)

  def encode(self, x: jax.Array) -> jax.Array:
    """Latents f(x) of eqs. 1 and 3: float32 [..., M] for x [..., D].

    With `SAEConfig.k` only the k largest of a row, and all that equal the last
    of them; the others are 0.
    """
    pre = self.pre_activations(x)
    active = pre > _broadcast(self.params.threshold, pre)
    latents = jnp.where(active, jnp.maximum(pre, 0), 0)
    if self.config.k is None:
      return latents
    return largest.keep(latents, self.config.k)

  def decode(self, latents: jax.Array, x: jax.Array | None = None) -> jax.Array:
    """Reconstruction of eq. 2: float32 [..., E] for latents [..., M].

    Args:
      latents: float [..., M].
      x: [..., D], what they encode; only a skip transcoder needs it, whose
        reconstruction is latents W_dec + b_dec + x W_skip.

    Raises:
      ValueError: a skip transcoder without x.
    """
    out = _product(latents, self.params.w_dec)
    out = out + _broadcast(self.params.b_dec, out)
    if self.params.w_skip is None:
      return out
    if x is None:
      raise ValueError(
        "this transcoder has a skip connection, so latents alone do not make"
        " its reconstruction: use sae(x), or sae.decode(latents, x)"
      )
    return out + _product(x.astype(jnp.float32), self.params.w_skip)

  def __call__(self, x: jax.Array) -> jax.Array:
    """decode(encode(x), x): float32 [..., E]."""
    return self.decode(self.encode(x), x)


def weights_hash(sae: SAE) -> str:
  """Hex SHA-256 over an SAE's arrays: the same weights, the same hash."""
  params = sae.params
  arrays = [params.w_enc, params.b_enc, params.w_dec, params.b_dec]
  arrays.append(params.threshold)
  if params.w_skip is not None:
    arrays.append(params.w_skip)
  return artifacts.sha256_arrays(arrays)


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
  # Full float32 everywhere: a threshold compares against this product, and a
  # lower precision would flip latents between devices.
  return jnp.matmul(x, jnp.asarray(matrix), precision="highest")


def _broadcast(vector: jax.Array, like: jax.Array) -> jax.Array:
  return jnp.asarray(vector).reshape((1,) * (like.ndim - 1) + (-1,))
