"""Training: one stream, every member of a sweep, exact resume.

`run` what a run's folder holds; `roster` its members; `schedule` when it logs
and saves; `units` what of a batch is read and reconstructed; `loop` the steps;
`trainee` a member while it trains; `endpoints` how one starts, and how it ends
as a finished SAE; `monitors` what a log line says, `utilisation` of the
machine; `preemption` and `processes` what ends it and who shares it;
`calibrate` which lambda gives which L0.
"""

from gemmascope_jax.training.loop import NonFiniteError
from gemmascope_jax.training.preemption import PreemptedError
from gemmascope_jax.training.roster import Member, members, nearest
from gemmascope_jax.training.run import METRICS, require_run, train
from gemmascope_jax.training.schedule import Schedule
