"""Runs as Slurm's jobs, by way of submitit."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from launch import group
from launch.runs import Run

_SAVED = 128 + signal.SIGTERM  # exit status of a run that was asked to end
_RESTARTS = 10_000  # a run resumes, so being stopped is no reason to give up


@dataclasses.dataclass(frozen=True)
class Resources:
  """What each run gets.

  Attributes:
    partition: of the cluster; None: its default. So are the next ones.
    account: to charge.
    qos: quality of service.
    constraint: on nodes, such as "a100".
    hours: wall-clock limit; a run that reaches it saves and is queued again.
    nodes: machines of a run.
    gpus_per_node: GPUs on each. A process is started for each GPU, as JAX
      expects under Slurm; 0: one process a node, on its CPUs.
    cpus_per_task: cores of a process.
    mem_gb: memory of a node; 0: the cluster's default.
    at_a_time: runs of an array at a time.
    save_s: seconds before the limit at which a run is asked to save.
    setup: lines of shell before each run, as "module load cuda".
  """

  partition: str | None = None
  account: str | None = None
  qos: str | None = None
  constraint: str | None = None
  hours: float = 24.0
  nodes: int = 1
  gpus_per_node: int = 1
  cpus_per_task: int = 8
  mem_gb: int = 0
  at_a_time: int = 256
  save_s: int = 180
  setup: tuple[str, ...] = ()

  def __post_init__(self):
    """Refuses what Slurm would.

    Raises:
      ValueError: a number that makes no sense.
    """
    for name in ("nodes", "cpus_per_task", "at_a_time", "save_s"):
      if getattr(self, name) < 1:
        raise ValueError(f"--{name}={getattr(self, name)}: expected at least 1")
    for name in ("gpus_per_node", "mem_gb"):
      if getattr(self, name) < 0:
        raise ValueError(f"--{name}={getattr(self, name)}: expected 0 or more")
    if not 2 * self.save_s < self.hours * 3600 < math.inf:
      raise ValueError(
        f"--hours={self.hours:g}: expected more than twice the {self.save_s} s"
        " that saving may take (--save_s), and finite"
      )

  @property
  def tasks(self) -> int:
    """Processes of a run."""
    return self.nodes * max(1, self.gpus_per_node)

  def parameters(self, name: str) -> dict[str, Any]:
    """As submitit takes them.

    Args:
      name: of the job, in Slurm's queue.
    """
    optional = {
      "partition": self.partition,
      "account": self.account,
      "qos": self.qos,
      "constraint": self.constraint,
      "gpus_per_node": self.gpus_per_node or None,
      "mem": f"{self.mem_gb}GB" if self.mem_gb else None,
      "setup": list(self.setup) or None,
    }
    return {key: value for key, value in optional.items() if value} | {
      "job_name": name,
      "time": round(self.hours * 60),
      "nodes": self.nodes,
      "ntasks_per_node": self.tasks // self.nodes,
      "cpus_per_task": self.cpus_per_task,
      "signal_delay_s": self.save_s,
      # Not at the first task that ends: all save together, and end together.
      "srun_args": ["--kill-on-bad-exit=0"],
      "additional_parameters": {"requeue": True},
    }


@dataclasses.dataclass
class Job:
  """One run inside Slurm, each of its tasks one process of it.

  Attributes:
    run: what is started.
    tasks: processes of it.
    save_s: seconds that it has to save when it is asked to end.
    patience_s: seconds to wait for Slurm's requeue once it has saved.
  """

  run: Run
  tasks: int = 1
  save_s: float = 150.0
  patience_s: float = 900.0

  def __call__(self) -> None:
    """Runs one task's process, in the job.

    Raises:
      RuntimeError: it failed; the run's folder says why, too.
    """
    rank = int(os.environ.get("SLURM_PROCID", 0))
    if rank == 0:
      self.run.has_begun()
    log = group.log_names(self.tasks)[rank]
    started = self._started = group.Group(self.run, logs=[log])
    while not started.is_over():
      time.sleep(0.2)
    if started.status == _SAVED:
      # Asked to end by Slurm itself, or by `checkpoint` of the first task: the
      # job is about to be taken away and queued again.
      time.sleep(self.patience_s)
    if rank == 0:
      self.run.has_ended(started.status, started.error())
    if started.status:
      raise RuntimeError(
        f"{self.run.folder}: exit status {started.status}: {started.error()}"
        f" ({self.run.folder / log})"
      )

  def checkpoint(self):
    """Asks the process to save: submitit calls it before the time is over.

    Of several processes that train together, one that is asked tells all.

    Returns:
      What to run when the job is queued again: the same command, which goes on.
    """
    import submitit

    started = self.__dict__.pop("_started", None)
    if started is not None:
      started.ask_to_end(self.save_s)
      while not started.is_over():
        time.sleep(0.1)
    return submitit.helpers.DelayedSubmission(self)


def script(
  runs: Sequence[Run], resources: Resources, folder: pathlib.Path, name: str
) -> str:
  """The sbatch script that would be submitted.

  Args:
    runs: one, or those of an array.
    resources: of each.
    folder: for what the jobs print.
    name: of the job.
  """
  slurm = _submitit().slurm.slurm
  many = {"map_count": len(runs), "array_parallelism": resources.at_a_time}
  return slurm._make_sbatch_string(
    command=shlex.join(
      [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]
    ),
    folder=folder,
    **resources.parameters(name),
    **(many if len(runs) > 1 else {}),
  )


def submit(
  runs: Sequence[Run],
  resources: Resources,
  folder: pathlib.Path,
  name: str,
  after: str | None = None,
) -> str:
  """Submits runs: an array if there are several.

  Args:
    runs: what to submit.
    resources: of each.
    folder: for what the jobs print; on a disk that all nodes see.
    name: of the job.
    after: id of a job that has to have succeeded before.

  Returns:
    The job's id.

  Raises:
    RuntimeError: there is no Slurm on this machine, or it refused.
    ImportError: submitit is not installed; names the extra.
  """
  submitit = _submitit()
  try:
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_RESTARTS)
  except RuntimeError as error:
    raise RuntimeError(
      f"there is no Slurm here ({error}): run this on a login node, or see the"
      " script with --dry_run"
    ) from error
  parameters = resources.parameters(name)
  if after is not None:
    parameters["dependency"] = f"afterok:{after}"
  executor.update_parameters(
    array_parallelism=resources.at_a_time, **parameters
  )
  jobs = [Job(run, resources.tasks, resources.save_s - 20) for run in runs]
  with executor.batch():
    submitted = [executor.submit(job) for job in jobs]
  return submitted[0].job_id.split("_")[0]


def _submitit():
  try:
    import submitit
    import submitit.slurm.slurm
  except ImportError as error:
    raise ImportError(
      "Slurm needs submitit, which is not installed: pip install"
      " 'gemmascope_jax[slurm]' (in a clone: pip install -e '.[slurm]')"
    ) from error
  return submitit
