"""Gemma 2 and Gemma 3 (text) as a pure function with taps and edits.

lm = gs.gemma.load("demo")
out = gs.gemma.forward(lm.config, lm.params, tokens, taps=("res.5",))
"""

import importlib.util

from gemmascope_jax.gemma import config, sites
from gemmascope_jax.gemma.config import PRESETS, GemmaConfig, preset
from gemmascope_jax.gemma.loss import next_token_losses, token_losses
from gemmascope_jax.gemma.model import Output, forward, init

# At once and not on first use: whoever imported the submodule `load` by name
# would otherwise leave the module, not the function, as `gs.gemma.load`.
if importlib.util.find_spec(f"{__name__}.load") is not None:
  from gemmascope_jax.gemma.load import Gemma, load
