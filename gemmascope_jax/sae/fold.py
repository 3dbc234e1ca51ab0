"""Folding the training-time conveniences into the released weights.

Training sees x / a and y / c and may subtract the pre-encoder bias, or a
transcoder's mean input m; a release does none of it. a [D] and c [E] are the inputs' and targets' scales. With

  f = JumpReLU_theta((x / a - s) W_enc + b_enc),   s = b_dec, m or 0
  y = c (f W_dec + b_dec + (x / a - m) W_skip)

and any n [M] > 0, f' = n f = JumpReLU_theta'(x W_enc' + b_enc') and
y = f' W_dec' + b_dec' + x W_skip' for

  W_enc'  = diag(1 / a) W_enc diag(n)     W_dec'  = diag(1 / n) W_dec diag(c)
  b_enc'  = n (b_enc - s W_enc)           b_dec'  = c (b_dec - m W_skip)
  theta'  = n theta                       W_skip' = diag(1 / a) W_skip diag(c)

because JumpReLU is positively homogeneous when the threshold scales along: the
same latents are active, and reconstructions are the same. n_i is the norm of
row i of W_dec diag(c), so that directions have unit length in raw space too.

For an SAE, and a transcoder (Gemma Scope divides its targets by the inputs'
C), a = c = C is one number: n = C, and W_enc, W_dec and W_skip are unchanged,
which is the paper's appendix A. A crosscoder's sites have each a C of their
own: rows of W_dec are of unit length over all sites together, in training
units before folding and in raw units after it.
"""

from __future__ import annotations

import numpy as np

from gemmascope_jax.sae.sae import Params


def fold(
  params: dict,
  scale: float | np.ndarray,
  pre_encoder_bias: bool,
  target_scale: float | np.ndarray | None = None,
  centre: np.ndarray | None = None,
) -> Params:
  """Training-space parameters to raw activation space.

  Args:
    params: as a family's `release` gives them, trained on x / scale.
    scale: a: C, the root of the site's mean square norm, or [D], one for each
      input; positive.
    pre_encoder_bias: whether the encoder read x - b_dec.
    target_scale: c, of the targets: a number or [E]; None: `scale`.
    centre: m, [D], what was subtracted from the inputs; None: nothing.

  Returns:
    Parameters for raw activations and no pre-encoder bias; float32, computed
    in float64.

  Raises:
    ValueError: a scale that is not positive and finite.
  """
  a = np.asarray(scale, np.float64)
  c = a if target_scale is None else np.asarray(target_scale, np.float64)
  for each in (a, c):
    if not ((each > 0) & np.isfinite(each)).all():
      raise ValueError(
        f"normalisation scale C is {each.min()}; expected a positive number: the"
        " store's activations are all zero or not finite"
      )
  params = {name: np.asarray(value) for name, value in params.items()}
  w_enc, w_dec = params["w_enc"].T, params["w_dec"]
  b_enc, b_dec, threshold = (
    params[name].astype(np.float64) for name in ("b_enc", "b_dec", "threshold")
  )
  if pre_encoder_bias:
    b_enc = b_enc - params["w_enc"] @ b_dec
  w_skip = params.get("w_skip")
  if centre is not None:
    b_enc = b_enc - params["w_enc"].astype(np.float64) @ centre
    if w_skip is not None:
      b_dec = b_dec - centre @ w_skip.astype(np.float64)
  if c.ndim == 0:
    n = c
  else:
    raw = w_dec * c[None, :]
    n = np.maximum(np.linalg.norm(raw, axis=1), np.finfo(np.float64).tiny)
    w_dec = raw / n[:, None]
  if a.ndim or c.ndim or a != c:
    w_enc = w_enc / np.reshape(a, (-1, 1)) * np.reshape(n, (1, -1))
    if w_skip is not None:
      w_skip = w_skip / np.reshape(a, (-1, 1)) * np.reshape(c, (1, -1))
  return Params(
    w_enc=np.asarray(w_enc, np.float32),
    b_enc=np.asarray(n * b_enc, np.float32),
    w_dec=np.asarray(w_dec, np.float32),
    b_dec=np.asarray(c * b_dec, np.float32),
    threshold=np.asarray(n * threshold, np.float32),
    w_skip=None if w_skip is None else np.asarray(w_skip, np.float32),
  )


def unfold(
  params: Params,
  scale: float,
  pre_encoder_bias: bool,
  target_scale: float | None = None,
  centre: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """The inverse of `fold`, for training to go on from a finished SAE.

  Args:
    params: on raw activations.
    scale: a, a number; of the data that training goes on with.
    pre_encoder_bias: whether the encoder is to read x - b_dec.
    target_scale: c; None: `scale`.
    centre: m, [D], what is subtracted from the inputs; None: nothing.

  Returns:
    float32 "w_enc" [M, D], "b_enc", "w_dec", "b_dec", "threshold" and, of a skip
    transcoder, "w_skip": training-space parameters that fold to `params`.
  """
  a, c = float(scale), float(scale if target_scale is None else target_scale)
  exact = {
    name: np.asarray(value, np.float64)
    for name, value in vars(params).items()
    if value is not None
  }
  w_enc = exact["w_enc"].T * (a / c)
  w_skip = exact.get("w_skip")
  b_dec, b_enc = exact["b_dec"] / c, exact["b_enc"] / c
  if w_skip is not None:
    w_skip = w_skip * (a / c)
  if centre is not None:
    b_enc = b_enc + w_enc @ centre
    if w_skip is not None:
      b_dec = b_dec + centre @ w_skip
  if pre_encoder_bias:
    b_enc = b_enc + w_enc @ b_dec
  found = {
    "w_enc": w_enc,
    "b_enc": b_enc,
    "w_dec": exact["w_dec"],
    "b_dec": b_dec,
    "threshold": exact["threshold"] / c,
  } | ({} if w_skip is None else {"w_skip": w_skip})
  return {name: value.astype(np.float32) for name, value in found.items()}
