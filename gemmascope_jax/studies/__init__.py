"""The paper's studies: one file each, metric definitions in one place.

`estimate` and `records` define the metrics, `replacements` what can be
spliced, `splice` runs the language model.
"""

from gemmascope_jax.studies.first_look import Look, look
from gemmascope_jax.studies.sparsity_fidelity import Fidelity, fidelity
