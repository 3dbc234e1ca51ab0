"""The queue of this machine: runs, a few at a time."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from launch import group
from launch.runs import Run

_ENDING_S = 60.0  # to save, of runs whose launcher is asked to end


def work(runs: list[Run], jobs: int, processes: int = 1) -> list[Run]:
  """Runs what is not done, `jobs` at a time; returns those that failed.

  Args:
    runs: the queue.
    jobs: how many at a time.
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
    jobs: how many at a time.
    processes: of each run.
    ended: called with each run that finished or failed, at once.
  """
  waiting = [run for run in runs if not run.is_done]
  print(f"{len(runs)} runs, {len(runs) - len(waiting)} already done")
  logs = ", ".join(group.log_names(processes))
  active: list[group.Group] = []
  failed = {}
  with _terminable():
    try:
      while waiting or active:
        while waiting and len(active) < jobs:
          run = waiting.pop(0)
          run.has_begun()
          active.append(group.Group(run, processes))
          print(f"started  {run.folder} ({logs})", flush=True)
        for each in [each for each in active if each.is_over()]:
          active.remove(each)
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
      _end(active)
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
