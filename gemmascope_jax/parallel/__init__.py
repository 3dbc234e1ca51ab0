"""Meshes and partition rules: how parameters are split over devices."""

from gemmascope_jax.parallel.host import blocks
from gemmascope_jax.parallel.mesh import DATA, MODEL, make_mesh
from gemmascope_jax.parallel.rules import (
  FOLDED_RULES,
  LM_RULES,
  SAE_RULES,
  constrain,
  shard,
  shardings,
)
