"""Sparse autoencoders: training, folding, and finished SAEs.

`load` reads any release, or a member of a training run.
"""

from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.load import load
from gemmascope_jax.sae.sae import SAE, SAEConfig
