"""Sparse autoencoders on Gemma, in JAX: harvest, train, evaluate, release.

    import gemmascope_jax as gs

    lm = gs.gemma.load("demo")
    out = gs.gemma.forward(lm.config, lm.params, tokens, taps=("res.5",))
    sae = gs.sae.load("runs/quickstart/releases/...")
    gs.studies.fidelity(lm, {"res.5": sae}, tokens)["res.5"].delta_loss

Sub-packages are imported on first use, so `import gemmascope_jax` is cheap.
"""

import importlib

__version__ = "0.1.0"

_PARTS = (
  "circuits",
  "data",
  "gemma",
  "parallel",
  "releases",
  "report",
  "sae",
  "steering",
  "studies",
)


def __getattr__(name: str):
  if name in _PARTS:
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
  return [*globals(), *_PARTS]
