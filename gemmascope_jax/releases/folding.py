"""Other people's parameterisations as one JumpReLU or TopK on raw activations.

Each is exact as an equation, computed in float64 and rounded once to float32:

* An encoder that reads x - b_dec:  b_enc' = b_enc - b_dec W_enc.
* Latents that are scaled by the norms n of the decoder's rows before a TopK or
  a threshold, and divided by them after it:  W_enc' = W_enc n,  b_enc' = b_enc n,
  W_dec' = W_dec / n.
* A gated SAE, f = 1[g > 0] ReLU(m) with g = x W + b_gate and
  m = s (x W) + b_mag, s = exp(r_mag) > 0. As g = (m - b_mag) / s + b_gate,

    g > 0   where   m > theta = b_mag - s b_gate,

  so f is the JumpReLU of m with threshold theta. Where theta < 0 the ReLU is
  the narrower condition, so max(theta, 0) is the same function.

Letters: D width of the input, E of the output, M latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from gemmascope_jax.releases.stored import Index, Stored

Arrays = dict[str, Stored]
_ALL = slice(None)


def _exact(value) -> np.ndarray:
  return np.asarray(value, np.float64)


def _derived(like: Stored, make: Callable[[Index], np.ndarray]) -> Stored:
  return Stored(
    like.name, like.shape, lambda index: make(index).astype(np.float32)
  )


def without_pre_bias(arrays: Mapping[str, Stored]) -> Arrays:
  """For an encoder that reads x - b_dec: one that reads x."""
  w_enc, b_enc, b_dec = (arrays[k] for k in ("w_enc", "b_enc", "b_dec"))

  def make(index: Index) -> np.ndarray:
    shift = _exact(b_dec[...]) @ _exact(w_enc[_ALL, index[0]])
    return _exact(b_enc[index]) - shift

  return dict(arrays) | {"b_enc": _derived(b_enc, make)}


def with_pre_bias(w_enc, b_enc, b_dec) -> np.ndarray:
  """float32 [M]: the inverse, b_enc + b_dec W_enc."""
  found = _exact(b_enc) + _exact(b_dec) @ _exact(w_enc)
  return found.astype(np.float32)


def unit_decoder(arrays: Mapping[str, Stored]) -> Arrays:
  """Rows of W_dec of unit length, latents multiplied by what they were.

  Thresholds are not touched: they were in these units already.

  Raises:
    ValueError: a row of W_dec that is zero.
  """
  w_enc, b_enc, w_dec = (arrays[k] for k in ("w_enc", "b_enc", "w_dec"))

  def norms(latents: slice) -> np.ndarray:
    found = np.linalg.norm(_exact(w_dec[latents, _ALL]), axis=1)
    if not found.all():
      raise ValueError(
        f"{w_dec.name} has rows of zeros, by whose norm latents are scaled"
      )
    return found

  return dict(arrays) | {
    "w_enc": _derived(w_enc, lambda i: _exact(w_enc[i]) * norms(i[1])[None]),
    "b_enc": _derived(b_enc, lambda i: _exact(b_enc[i]) * norms(i[0])),
    "w_dec": _derived(w_dec, lambda i: _exact(w_dec[i]) / norms(i[0])[:, None]),
  }


def gated(
  arrays: Mapping[str, Stored],
  r_mag: Stored,
  b_mag: Stored,
  b_gate: Stored,
) -> Arrays:
  """A gated SAE as a JumpReLU, see above.

  Args:
    arrays: "w_enc" the gate's W, "w_dec" and "b_dec".
    r_mag: [M].
    b_mag: [M].
    b_gate: [M].
  """
  w_enc = arrays["w_enc"]
  scale = lambda latents: np.exp(_exact(r_mag[latents]))

  def threshold(index: Index) -> np.ndarray:
    found = _exact(b_mag[index]) - scale(index[0]) * _exact(b_gate[index])
    return np.maximum(found, 0)

  return dict(arrays) | {
    "w_enc": _derived(w_enc, lambda i: _exact(w_enc[i]) * scale(i[1])[None]),
    "b_enc": b_mag,
    "threshold": _derived(b_gate, threshold),
  }
