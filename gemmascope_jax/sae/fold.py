"""Folding the training-time conveniences into the released weights.

Training sees x / C and subtracts the pre-encoder bias; a release does neither
(Gemma Scope, appendix A). With W_enc and W_dec unchanged,

  b_enc'     = C b_enc - C W_enc b_dec   (the second term with the pre-bias)
  b_dec'     = C b_dec
  threshold' = C threshold

gives latents scaled by C, the same L0 and the same reconstructions, because
JumpReLU is positively homogeneous when the threshold scales along.
"""

from __future__ import annotations

import numpy as np

from gemmascope_jax.sae.sae import Params


def fold(params: dict, scale: float, pre_encoder_bias: bool) -> Params:
  """Training-space parameters to raw activation space.

  Args:
    params: as a family's `release` gives them, trained on x / scale.
    scale: C, the root of the site's mean square norm; positive.
    pre_encoder_bias: whether the encoder read x - b_dec.

  Returns:
    Parameters for raw activations and no pre-encoder bias; float32, computed
    in float64.

  Raises:
    ValueError: a scale that is not positive and finite.
  """
  if not (scale > 0 and np.isfinite(scale)):
    raise ValueError(
      f"normalisation scale C is {scale}; expected a positive number: the"
      " store's activations are all zero or not finite"
    )
  params = {name: np.asarray(value) for name, value in params.items()}
  b_dec = params["b_dec"].astype(np.float64)
  b_enc = params["b_enc"].astype(np.float64)
  if pre_encoder_bias:
    b_enc = b_enc - params["w_enc"] @ b_dec
  raw = lambda value: (scale * value).astype(np.float32)
  return Params(
    w_enc=np.asarray(params["w_enc"].T, np.float32),
    b_enc=raw(b_enc),
    w_dec=np.asarray(params["w_dec"], np.float32),
    b_dec=raw(b_dec),
    threshold=raw(params["threshold"].astype(np.float64)),
  )
