"""Trains a whole sweep: grouped, resumable, with its figure while it runs.

  python -m launch.sweep --sweep=configs/sweeps/quickstart.py --root=runs/sweep
  python -m launch.sweep --sweep=configs/sweeps/gemma_scope_2b.py --dry_run \\
    --root=runs/gemma_scope_2b

SAEs that differ in the recipe alone are trained by one run; activations are
harvested once for all that can share them. The same command goes on after a
crash, tries again what failed, and takes in entries that were added meanwhile.
`--status` shows how far it is, in another terminal. See docs/sweeps.md.
"""

from __future__ import annotations

import shlex
import sys

from absl import app, flags

from gemmascope_jax.report import sweep as report
from launch import arguments, queue
from launch.sweeps import plan as planning
from launch.sweeps import reading, state

_SWEEP = flags.DEFINE_string("sweep", None, "A sweep's file.", required=True)
_ROOT = flags.DEFINE_string("root", None, "Where all goes.", required=True)
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time, sharing the GPUs; 0: fill them.", lower_bound=0
)
_PROCESSES = flags.DEFINE_integer(
  "processes", 1, "Processes of each run, on loopback.", lower_bound=1
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Only print groups and commands."
)
_STATUS = flags.DEFINE_bool(
  "status", False, "Only print what is done, and draw what there is."
)


def main(argv) -> None:
  """Plans, runs and collects; exit status 1 if a run failed."""
  arguments.require_flags_only(argv)
  try:
    sweep = reading.sweep(_SWEEP.value)
    kept = state.kept(_ROOT.value, sweep.config)
    plan = planning.make(sweep, kept)
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f"error: {error}")
  harvests, groups = plan.runs(_ROOT.value)
  if _DRY_RUN.value:
    for run in (*harvests, *groups):
      print(shlex.join(run.command))
    print(_summary(plan), file=sys.stderr)
    return
  if _STATUS.value:
    print(state.table(plan, _ROOT.value))
    _collect(groups)
    return
  print(_summary(plan), flush=True)
  state.remember(_ROOT.value, plan)
  try:
    failed = queue.failures(harvests, 1, _PROCESSES.value)
    if not failed:
      failed = queue.failures(
        groups, _JOBS.value, _PROCESSES.value, lambda run: _collect(groups)
      )
  except ValueError as error:
    sys.exit(f"error: {error}")
  print(state.table(plan, _ROOT.value))
  _collect(groups)
  if failed:
    sys.exit("some runs failed: mend the cause and run the same command again")


def _summary(plan: planning.Plan) -> str:
  sites = sum(len(harvest.sites) for harvest in plan.harvests)
  lines = [
    f"{plan.saes} SAEs of {len(plan.sweep.entries)} entries, in"
    f" {len(plan.groups)} runs; {len(plan.harvests)} harvests of {sites} sites"
  ]
  for each in plan.harvests:
    lines.append(
      f"  {each.name}: {each.rows:,} rows of {len(each.sites)} sites"
    )
  return "\n".join(lines)


def _collect(groups) -> None:
  """The table and the figures of what has been evaluated."""
  results = {
    run.folder.name: run.folder / "results" / "fidelity.json" for run in groups
  }
  there = {name: path for name, path in results.items() if path.exists()}
  missing = [name for name in results if name not in there]
  try:
    for path in report.build(there, _ROOT.value, missing):
      print(f"written  {path}", flush=True)
  except ImportError as error:
    print(f"no figures: {error}", file=sys.stderr)


if __name__ == "__main__":
  app.run(main)
