"""The queue of this machine: runs, a few at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from launch import gpus, group
from launch.runs import Run

_ENDING_S = 60.0  # to save, of runs whose launcher is asked to end


def work(runs: list[Run], jobs: int, processes: int = 1) -> list[Run]:
  """Runs what is not done, `jobs` at a time; returns those that failed.

  Args:
    runs: the queue.
    jobs: how many at a time; see `failures`.
    processes: of each run, on loopback.
  """
  return list(failures(runs, jobs, processes))


def failures(
  runs: list[Run],
  jobs: int,
  processes: int = 1,
  ended: Callable[[Run], None] = lambda run: None,
) -> dict[Run, int]:
  """`work`, with the exit status of each run that failed, in that order.

  A run's folder says why it failed (`Run.failure`).

  Args:
    runs: the queue.
    jobs: how many at a time; they share the GPUs of this machine. 0: one for
      each GPU, or for each `processes` of them; one where there are none.
    processes: of each run.
    ended: called with each run that finished or failed, at once.

  Raises:
    ValueError: GPUs that can't be shared evenly.
  """
  jobs = jobs or max(1, len(gpus.listed(os.environ)) // processes)
  shares = [
    {**os.environ, **gpus.share(os.environ, jobs, slot)} for slot in range(jobs)
  ]
  for environment in shares:
    gpus.share(environment, processes, 0)
  waiting = [run for run in runs if not run.is_done]
  print(f"{len(runs)} runs, {len(runs) - len(waiting)} already done")
  logs = ", ".join(group.log_names(processes))
  active: dict[int, group.Group] = {}  # by the share that they have
  failed = {}
  with _terminable():
    try:
      while waiting or active:
        while waiting and len(active) < jobs:
          run = waiting.pop(0)
          run.has_begun()
          slot = next(n for n in range(jobs) if n not in active)
          active[slot] = group.Group(run, processes, environment=shares[slot])
          print(f"started  {run.folder} ({logs})", flush=True)
        over = [slot for slot, each in active.items() if each.is_over()]
        for each in [active.pop(slot) for slot in over]:
          folder = each.run.folder
          each.run.has_ended(each.status, each.error())
          if each.status:
            failed[each.run] = each.status
            which = f" of process {each.failed}" if processes > 1 else ""
            print(
              f"FAILED   {folder}: exit status {each.status}{which}:"
              f" {each.error()}",
              flush=True,
            )
          else:
            print(f"finished {folder}", flush=True)
          ended(each.run)
        time.sleep(0.2)
    finally:
      _end(list(active.values()))
  return failed


def _end(active: list[group.Group]) -> None:
  """Asks what still runs to end, and waits while it saves."""
  for each in active:
    each.ask_to_end(_ENDING_S)
  while not all(each.is_over() for each in active):
    time.sleep(0.1)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
  """SIGTERM ends the queue as Ctrl-C does: its runs are asked to end, too."""
  if threading.current_thread() is not threading.main_thread():
    yield  # only the main thread may handle signals
    return

  def end(number, frame):
    del frame
    sys.exit(128 + number)

  before = signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
