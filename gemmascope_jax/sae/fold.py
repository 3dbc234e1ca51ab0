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

from gemmascope_jax.sae.jumprelu import Params


def fold(params: Params, scale: float, pre_encoder_bias: bool) -> Params:
  """Training-space parameters to raw activation space.

  Args:
    params: as trained on x / scale.
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
  b_dec = np.asarray(params.b_dec, np.float64)
  b_enc = np.asarray(params.b_enc, np.float64)
  if pre_encoder_bias:
    b_enc = b_enc - b_dec @ np.asarray(params.w_enc, np.float64)
  return Params(
    w_enc=np.asarray(params.w_enc, np.float32),
    b_enc=(scale * b_enc).astype(np.float32),
    w_dec=np.asarray(params.w_dec, np.float32),
    b_dec=(scale * b_dec).astype(np.float32),
    threshold=(scale * np.asarray(params.threshold, np.float64)).astype(
      np.float32
    ),
  )
