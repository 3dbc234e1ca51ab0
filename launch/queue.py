"""The queue of this machine: runs, a few at a time."""

from __future__ import annotations

import signal
import subprocess
import time

from gemmascope_jax import artifacts
from launch.runs import DONE, Run


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
