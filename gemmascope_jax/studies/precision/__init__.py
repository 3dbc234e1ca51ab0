"""The precision study: SAEs and language model in low precision (paper, 4.7).

`formats` says what a format is, `low_precision` and `lm` are SAEs and models in
one, `flips` counts latents that switch, `study.run` measures it all.
"""

from gemmascope_jax.studies.precision.findings import findings
from gemmascope_jax.studies.precision.study import STUDY, run
