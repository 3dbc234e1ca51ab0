"""A finished SAE: encode and decode raw activations.

Letters: D width of the site, M latents.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemmascope_jax.data.policy import TokenPolicy


@flax.struct.dataclass
class Params:
  """A finished SAE's arrays, all float32, in raw activation space.

  Attributes:
    w_enc: [D, M].
    b_enc: [M].
    w_dec: [M, D], rows of unit length.
    b_dec: [D].
    threshold: [M], not negative.
  """

  w_enc: jax.Array
  b_enc: jax.Array
  w_dec: jax.Array
  b_dec: jax.Array
  threshold: jax.Array


@dataclasses.dataclass(frozen=True)
class SAEConfig:
  """What an SAE is for; static under jit.

  Attributes:
    family: architecture of the stored weights: "jumprelu".
    site: where it reads and writes, such as "res.12"; None if unknown.
    model: label of the language model; None if unknown.
    token_policy: the positions that it was trained on; None if unknown.
    provenance: JSON of the training recipe, data and hashes; "{}" if unknown.
  """

  family: str = "jumprelu"
  site: str | None = None
  model: str | None = None
  token_policy: TokenPolicy | None = None
  provenance: str = "{}"

  def details(self) -> dict[str, Any]:
    """The provenance as a dict."""
    return json.loads(self.provenance)


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
    """Latents f(x) of eqs. 1 and 3: float32 [..., M] for x [..., D]."""
    pre = self.pre_activations(x)
    active = pre > _broadcast(self.params.threshold, pre)
    return jnp.where(active, jnp.maximum(pre, 0), 0)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Reconstruction of eq. 2: float32 [..., D] for latents [..., M]."""
    out = _product(latents, self.params.w_dec)
    return out + _broadcast(self.params.b_dec, out)

  def __call__(self, x: jax.Array) -> jax.Array:
    """decode(encode(x)): float32 [..., D]."""
    return self.decode(self.encode(x))


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
  # Full float32 everywhere: a threshold compares against this product, and a
  # lower precision would flip latents between devices.
  return jnp.matmul(x, jnp.asarray(matrix), precision="highest")


def _broadcast(vector: jax.Array, like: jax.Array) -> jax.Array:
  return jnp.asarray(vector).reshape((1,) * (like.ndim - 1) + (-1,))
