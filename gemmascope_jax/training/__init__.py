"""Training: one stream, every member of a sweep, exact resume.

`run` what a run's folder holds; `loop` the steps; `endpoints` how a member
starts, and how it ends as a finished SAE; `monitors` what a log line says.
"""

from gemmascope_jax.training.loop import METRICS, NonFiniteError
from gemmascope_jax.training.run import (
  CHECKPOINTS,
  INITIAL,
  Schedule,
  members,
  require_run,
  train,
)
