"""What the latents of SAEs do on stored rows, in one pass and bounded memory.

`sample` says which rows and hands them out in blocks, `entries` encodes a
block and keeps only what is active; the others add up one thing each:
`firing` how often, `values` how strongly, `examples` where, `tokens` on which
tokens. `collect` does all of them for several SAEs at once.
"""

from gemmascope_jax.studies.activity.collect import (
  LatentStatistics,
  collect,
)
from gemmascope_jax.studies.activity.entries import Entries, active
from gemmascope_jax.studies.activity.firing import Firing, Frequencies
from gemmascope_jax.studies.activity.sample import Block, Sample
