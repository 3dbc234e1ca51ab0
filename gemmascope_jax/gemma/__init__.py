"""Gemma 2 and Gemma 3 (text) as a pure function with taps and edits.

    lm = gs.gemma.load("demo")
    out = gs.gemma.forward(lm.config, lm.params, tokens, taps=("res.5",))

`load` is the function, not the module of that name: it is bound here, after
the submodule, and so stays.
"""

from gemmascope_jax.gemma import config, sites
from gemmascope_jax.gemma.config import PRESETS, GemmaConfig, preset
from gemmascope_jax.gemma.load import Gemma, load
from gemmascope_jax.gemma.loss import (
  centred_logits,
  next_token_losses,
  token_losses,
)
from gemmascope_jax.gemma.model import Output, forward, init
from gemmascope_jax.gemma.sampling import Sample, sample
