"""Runs a binary for several settings on this machine, a few at a time.

  python -m launch.local --binary=quickstart --config=configs/quickstart.py \\
    --root=runs/sites --jobs=1 \\
    --run='harvest.sites=("res.5",) train.site=res.5' \\
    --run='harvest.sites=("res.9",) train.site=res.9'

Each run gets its own work directory and log below `--root`, named by its
settings. A run that finished is not started again and one that was killed goes
on where it was, so after a crash the same command finishes the queue.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from absl import app, flags

from gemmascope_jax import artifacts
from launch.runs import DONE, Run, plan

_BINARY = flags.DEFINE_string("binary", "quickstart", "Module in experiments/.")
_CONFIG = flags.DEFINE_string("config", None, "Config file.", required=True)
_ROOT = flags.DEFINE_string("root", None, "Where runs go.", required=True)
_RUN = flags.DEFINE_multi_string(
  "run", [], "Settings of one run: 'key=value key=value', without --config."
)
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)


def work(runs: list[Run], jobs: int) -> list[Run]:
  """Runs what is not done, `jobs` at a time; returns those that failed."""
  waiting = [run for run in runs if not run.is_done]
  print(f"{len(runs)} runs, {len(runs) - len(waiting)} already done")
  active: dict[subprocess.Popen, Run] = {}
  failed = []
  try:
    while waiting or active:
      while waiting and len(active) < jobs:
        run = waiting.pop(0)
        run.folder.mkdir(parents=True, exist_ok=True)
        with open(run.folder / "log.txt", "a", encoding="utf-8") as log:
          process = subprocess.Popen(run.command, stdout=log, stderr=log)
        active[process] = run
        print(f"started  {run.folder} (log.txt)", flush=True)
      for process in [each for each in active if each.poll() is not None]:
        run = active.pop(process)
        if process.returncode:
          failed.append(run)
          print(f"FAILED   {run.folder}: exit status {process.returncode}")
          continue
        artifacts.write_json(run.folder / DONE, {"command": list(run.command)})
        print(f"finished {run.folder}", flush=True)
      time.sleep(0.2)
  finally:
    for process in active:
      process.send_signal(signal.SIGTERM)
  return failed


def main(argv) -> None:
  """Plans and works the queue."""
  del argv
  try:
    runs = plan(_BINARY.value, _CONFIG.value, _ROOT.value, _RUN.value)
  except ValueError as error:
    sys.exit(f"error: {error}")
  failed = work(runs, _JOBS.value)
  if failed:
    sys.exit(
      f"{len(failed)} of {len(runs)} runs failed; read their log.txt, mend the"
      " cause and run the same command again"
    )


if __name__ == "__main__":
  app.run(main)
