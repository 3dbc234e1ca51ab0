"""Meshes and partition rules: how parameters are split over devices."""

from gemmascope_jax.parallel.mesh import DATA, MODEL, make_mesh
from gemmascope_jax.parallel.rules import (
  LM_RULES,
  SAE_RULES,
  constrain,
  shard,
  shardings,
)
