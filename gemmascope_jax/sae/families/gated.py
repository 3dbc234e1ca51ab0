"""The Gated SAE (Rajamanoharan et al., 3.2), with its encoders tied.

  gate = (x - b_dec) W_gate + b_gate
  mag  = (x - b_dec) W_gate exp(r_mag) + b_mag
  f    = 1[gate > 0] ReLU(mag)
  loss = mean_B( ||x - x_hat(f)||^2 + lambda sum_i ReLU(gate_i) ||d_i||
                 + ||x - x_hat(ReLU(gate))||^2 )

W_gate is w_enc and b_gate b_enc; besides there are r_mag [M] and b_mag [M]. The
gate passes no gradient, so it learns from the last two terms alone. `gated_loss`
"original" (eq. 8) stops the gradient of the last term at the decoder; "ri_l1"
does not, and penalises what a decoder of any scale makes of the latents. The
norms ||d_i|| are 1 here, and their gradient, along d_i, is removed by the
optimizer, so "original" has none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary
from gemmascope_jax.sae.families.dictionary import Batch, Params, Sample

_DECODER = ("w_dec", "b_dec", "w_skip")


def init(recipe: Recipe, key: jax.Array, sample: Sample) -> Params:
  """The dictionary's start; both encoders the same."""
  params = dictionary.init(recipe, key, sample)
  zeros = jnp.zeros_like(params["b_enc"])
  return params | {"r_mag": zeros, "b_mag": zeros}


def bound(
  recipe: Recipe, params: Params, pre: jax.Array, batch: Batch
) -> jax.Array:
  """[1, 1]: zero, where gates open."""
  del recipe, params, batch
  return jnp.zeros((1, 1), pre.dtype)


def loss(recipe: Recipe, params: Params, code, batch: Batch):
  """The loss above, and `dictionary.measures`."""
  gate = dictionary.pre_activations(params, code)
  mag = code.linear * code.take(jnp.exp(params["r_mag"]))
  mag = mag + code.take(params["b_mag"])
  values = jnp.where(gate > 0, jax.nn.relu(mag), 0)
  errors = dictionary.squared_errors(recipe, params, code, values, batch)
  gate = jax.nn.relu(gate)
  if recipe.gated_loss == "ri_l1":
    decoder = params
    norms = jnp.linalg.norm(params["w_dec"], axis=1)
    l1 = code.mean(gate * code.take(norms))
  else:
    decoder = jax.lax.stop_gradient(
      {name: params[name] for name in _DECODER if name in params}
    )
    l1 = code.mean(gate)
  auxiliary = dictionary.squared_errors(recipe, decoder, code, gate, batch)
  total = errors.trained + batch.sparsity_coefficient * l1 + auxiliary.trained
  return total, dictionary.measures(code, values, errors) | {
    "auxiliary_error": auxiliary.whole
  }


def release(recipe: Recipe, params: Params) -> Params:
  """The equivalent JumpReLU (3.2.1, appendix E).

  The gate is open where mag > b_mag - exp(r_mag) b_gate; where that is below
  zero, ReLU(mag) is the narrower condition.
  """
  del recipe
  scale = jnp.exp(params["r_mag"])
  threshold = params["b_mag"] - scale * params["b_enc"]
  magnitudes = params | {
    "w_enc": scale[:, None] * params["w_enc"],
    "b_enc": params["b_mag"],
  }
  return dictionary.released(magnitudes, jnp.maximum(threshold, 0))
