"""The width study: ladders of SAEs of growing width (paper, 4.3).

`study.run` measures: `fidelity` at equal L0, `matching` and `stitching` for
feature splitting, `dark_matter` for what remains at every width.
"""

from gemmascope_jax.studies.width.findings import findings
from gemmascope_jax.studies.width.study import STUDY, run
