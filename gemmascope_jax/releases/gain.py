"""The MLP's input with and without its norm's gain.

Before the MLP stands an RMSNorm with a gain g = 1 + w, [D]: the MLP reads
g x, with x the normalised activation. Our `mlp_in.L`, and Gemma Scope 1's
transcoders, read x. Gemma Scope 2's transcoders, and tools that hook the norm's
output, read g x; we name that `mlp_in_gain.L`. The same transcoder on either:

  (g x) W + b = x (diag(g) W) + b

so W_enc and W_skip are multiplied by g, row by row, and thresholds, biases and
decoder stay. g is the language model's, so a file alone cannot say it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gemmascope_jax.gemma.load import Gemma
from gemmascope_jax.releases import names
from gemmascope_jax.sae.sae import SAE

_GAIN_FREE = "mlp_in"


def of(lm: Gemma, layer: int) -> np.ndarray:
  """g of a layer: float64 [D]."""
  scale = lm.params[f"layer_{layer}"]["pre_mlp_norm"]["scale"]
  return 1 + np.asarray(scale, np.float64)


def without(sae: SAE, lm: Gemma) -> SAE:
  """A transcoder that reads g x as one that reads x, our `mlp_in.L`.

  Args:
    sae: at the site "mlp_in_gain.L", as Gemma Scope 2's are loaded.
    lm: the language model it is for.

  Returns:
    The same latents and reconstructions, up to float32 rounding of W_enc; at
    the site "mlp_in.L".

  Raises:
    ValueError: another site; a model without that layer, or of another width.
  """
  return _moved(sae, lm, names.GAINED, _GAIN_FREE, 1)


def with_gain(sae: SAE, lm: Gemma) -> SAE:
  """The inverse of `without`, for formats whose transcoders read g x.

  Raises:
    ValueError: another site; a model without that layer, or of another width;
      a gain of 0, whose input cannot be recovered.
  """
  return _moved(sae, lm, _GAIN_FREE, names.GAINED, -1)


def _moved(sae: SAE, lm: Gemma, kind: str, to: str, power: int) -> SAE:
  found, _, layer = (sae.config.site or "").partition(".")
  if found != kind:
    raise ValueError(
      f"an SAE at {sae.config.site or 'an unnamed site'} does not read"
      f" {kind}.L: there is no gain to move"
    )
  if int(layer) >= lm.config.num_layers or lm.config.width != sae.site_width:
    raise ValueError(
      f"the SAE reads {sae.config.site} of width {sae.site_width}, but"
      f" {lm.label} has layers 0..{lm.config.num_layers - 1} of width"
      f" {lm.config.width}: load the model that the SAE is of"
      f" ({sae.config.model or 'unknown'})"
    )
  gain = of(lm, int(layer))
  if power < 0 and not gain.all():
    raise ValueError(
      f"the norm before layer {layer}'s MLP has a gain of 0 at"
      f" {np.flatnonzero(gain == 0).tolist()}: what comes after it does not"
      " tell what came before"
    )
  rows = (gain**power)[:, None]
  times = lambda value: (rows * np.asarray(value, np.float64)).astype("f4")
  params = sae.params.replace(w_enc=times(sae.params.w_enc))
  if params.w_skip is not None:
    params = params.replace(w_skip=times(params.w_skip))
  config = dataclasses.replace(sae.config, site=f"{to}.{layer}")
  return SAE(params=params, config=config)
