"""Submits runs, or a whole sweep, to Slurm.

  python -m launch.slurm --config=configs/quickstart.py --root=runs/sites \\
    --partition=gpu --gpus_per_node=1 --hours=4 \\
    --run='harvest.sites=("res.5",) train.site=res.5' \\
    --run='harvest.sites=("res.9",) train.site=res.9'
  python -m launch.slurm --sweep=configs/sweeps/quickstart.py --root=runs/sweep

Several runs are one array. A run that is preempted, or reaches its limit, saves
and is queued again; the same command later submits what is not done. With
`--dry_run` nothing is submitted: the scripts and commands are printed, on any
machine. `python -m launch.sweep --status` shows how far a sweep is.

Run it on a login node, in the environment and the folder (on a disk that all
nodes see) in which the runs are to start. Needs `pip install -e ".[slurm]"`.
"""

from __future__ import annotations

import pathlib
import shlex
import sys

from absl import app, flags

from launch import arguments, runs
from launch.cluster import slurm
from launch.sweeps import plan as planning
from launch.sweeps import reading, state

_D = slurm.Resources()
_SWEEP = flags.DEFINE_string("sweep", None, "A sweep's file, instead of runs.")
_BINARY = flags.DEFINE_string("binary", "quickstart", "Module in experiments/.")
_CONFIG = flags.DEFINE_string("config", None, "Config file of the runs.")
_RUN = flags.DEFINE_multi_string(
  "run", [], "Settings of one run: 'key=value key=value', without --config."
)
_ROOT = flags.DEFINE_string("root", None, "Where all goes.", required=True)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Only print scripts and commands."
)
_RESOURCES = (
  flags.DEFINE_string("partition", None, "Of the cluster; default: its own."),
  flags.DEFINE_string("account", None, "To charge."),
  flags.DEFINE_string("qos", None, "Quality of service."),
  flags.DEFINE_string("constraint", None, "On nodes, such as a100."),
  flags.DEFINE_float(
    "hours", _D.hours, "Limit, after which a run goes on anew."
  ),
  flags.DEFINE_integer("nodes", _D.nodes, "Machines of a run."),
  flags.DEFINE_integer(
    "gpus_per_node", _D.gpus_per_node, "One process each; 0: CPUs only."
  ),
  flags.DEFINE_integer(
    "cpus_per_task", _D.cpus_per_task, "Cores of a process."
  ),
  flags.DEFINE_integer("mem_gb", _D.mem_gb, "Of a node; 0: the default."),
  flags.DEFINE_integer(
    "at_a_time", _D.at_a_time, "Runs of an array at a time."
  ),
  flags.DEFINE_integer(
    "save_s", _D.save_s, "Seconds to save before the limit."
  ),
)
_SETUP = flags.DEFINE_multi_string(
  "setup", [], "A line of shell before each run, as 'module load cuda'."
)


def main(argv) -> None:
  """Plans and submits."""
  arguments.require_flags_only(argv)
  try:
    resources = slurm.Resources(
      setup=tuple(_SETUP.value), **{f.name: f.value for f in _RESOURCES}
    )
    stages = _stages()
    _submit(stages, resources)
  except (ValueError, OSError, RuntimeError, ImportError) as error:
    sys.exit(f"error: {error}")


def _stages() -> dict[str, list[runs.Run]]:
  """What to run, by the job's name; each after the one before."""
  root = _ROOT.value
  if not _SWEEP.value:
    if not _CONFIG.value:
      raise ValueError("expected --config with --run, or --sweep")
    planned = runs.plan(_BINARY.value, _CONFIG.value, root, _RUN.value)
    return {_BINARY.value: planned}
  if _CONFIG.value or _RUN.value:
    raise ValueError("--sweep names its config and runs: leave those out")
  sweep = reading.sweep(_SWEEP.value)
  plan = planning.make(sweep, state.kept(root, sweep.config))
  if not _DRY_RUN.value:
    state.remember(root, plan)
  harvests, groups = plan.runs(root)
  return {"harvest": harvests, "sweep": groups}


def _submit(stages, resources: slurm.Resources) -> None:
  folder = pathlib.Path(_ROOT.value).absolute() / "slurm"
  after = None
  for name, every in stages.items():
    todo = [run for run in every if not run.is_done]
    done = f"{name}: {len(every)} runs, {len(every) - len(todo)} already done"
    print(f"# {done}" if _DRY_RUN.value else done, flush=True)
    if not todo:
      continue
    if _DRY_RUN.value:
      print(slurm.script(todo, resources, folder, name))
      for number, run in enumerate(todo):
        print(f"# task {number}: {shlex.join(run.command)}")
      continue
    after = slurm.submit(todo, resources, folder, name, after)
    print(
      f"submitted {name} as job {after}; logs: {folder} and log.txt of runs"
    )


if __name__ == "__main__":
  app.run(main)
