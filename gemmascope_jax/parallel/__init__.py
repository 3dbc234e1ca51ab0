"""Meshes and partition rules: how parameters are split over devices.

`start` makes several processes one program, `processes` says who does what in
it and `last_words` that one is gone; `blocks` brings what is in parts to
the host, a block at a time.
"""

from gemmascope_jax.parallel import last_words, processes
from gemmascope_jax.parallel.distributed import lost_peer, start
from gemmascope_jax.parallel.host import blocks
from gemmascope_jax.parallel.mesh import DATA, MODEL, make_mesh
from gemmascope_jax.parallel.rules import (
  FOLDED_RULES,
  FULLY_SHARDED_LM_RULES,
  LM_RULES,
  SAE_RULES,
  constrain,
  shard,
  shardings,
)
