"""Families of SAEs: one file each, the same four functions.

  init(recipe, key, sample) -> params     a dict of float32 arrays
  bound(recipe, params, pre, batch)       float32 [1 or B, 1 or M]: where
                                          pre = (x - shift) W_enc^T + b_enc
                                          [B, M] is not above it, a latent has
                                          neither value nor gradient
  loss(recipe, params, code, batch) -> (scalar, aux)
  release(recipe, params) -> dict         `dictionary.released`: the equivalent
                                          JumpReLU, in training units

To add one: write the file, and name it here and in `config.FAMILIES`.

`aux` of a loss holds scalars for the log ("squared_error", "l0", ...), "fired",
float32 [M], on how many rows of the batch each latent fired, and, if the family
sets a parameter by other means than gradients, "assign", {name: value}.

Letters: B batch rows, D width of the input, E of the target, M latents.
"""

from __future__ import annotations

from types import ModuleType

from gemmascope_jax.sae.families import (
  batch_topk,
  gated,
  jumprelu,
  relu,
  topk,
)

_MODULES = {
  "jumprelu": jumprelu,
  "gated": gated,
  "topk": topk,
  "batch_topk": batch_topk,
  "relu": relu,
}


def of(name: str) -> ModuleType:
  """The module of a family named in `config.FAMILIES`."""
  return _MODULES[name]
