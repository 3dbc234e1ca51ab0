"""Steering: a model's `edits` made of latents, and what they do to its text.

    lm, sae = gs.gemma.load("demo"), gs.sae.load(path)
    site = steering.site_of(sae)
    said = steering.generate(lm, ["I think"], {site: steering.add(sae, 7, 40)})

`edits` are the interventions, `generation` makes text under them,
`mean_difference` is their plain rival, `compare` weighs them all.
"""

from gemmascope_jax.steering.compare import compare
from gemmascope_jax.steering.contrast import contrast
from gemmascope_jax.steering.edits import (
  ablate,
  add,
  at,
  clamp,
  direction,
  site_of,
  together,
)
from gemmascope_jax.steering.generation import Generated, encode, generate
from gemmascope_jax.steering.mean_difference import (
  MeanDifference,
  mean_difference,
)
