"""Rivals in processes of their own, asked in turn.

Each rival loads once and then answers one request at a time, so that rounds
alternate between rivals and the machine's noise falls on both alike, and each
one's memory is its own.
"""

from __future__ import annotations

import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

_MARK = "@benchmark "


class Worker:
  """A rival's process.

  Args:
    module: run as `python -m module name`.
    name: which rival.
    python: the interpreter, for a rival whose packages do not go with ours.
  """

  def __init__(self, module: str, name: str, python: str = sys.executable):
    self._process = subprocess.Popen(
      [python, "-m", module, name],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """Sends one request and waits for its answer."""
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    for line in self._process.stdout:
      if line.startswith(_MARK):
        return json.loads(line.removeprefix(_MARK))
    raise RuntimeError(f"the worker died on {request}: see its error above")

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def serve(measure: Callable[[dict[str, Any]], Any]) -> None:
  """A worker's loop: times `measure(request)` and reports its peak memory.

  Answers {"seconds", "peak_gib", "value"}; peak_gib is the process's largest
  resident size during this request (Linux), weights included.
  """
  for line in sys.stdin:
    _reset_peak()
    start = time.perf_counter()
    value = measure(json.loads(line))
    seconds = time.perf_counter() - start
    answer = {"seconds": seconds, "peak_gib": peak_gib(), "value": value}
    print(_MARK + json.dumps(answer), flush=True)


def _reset_peak() -> None:
  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5")
  except OSError:
    pass  # then the peak includes loading, for every rival alike


def peak_gib(process: int | str = "self") -> float:
  """A process's largest resident size so far (Linux)."""
  return _status_gib("VmHWM", process)


def anonymous_gib(process: int | str = "self") -> float:
  """A process's own memory now, without mapped files (Linux)."""
  return _status_gib("RssAnon", process)


def _status_gib(field: str, process: int | str) -> float:
  status = pathlib.Path(f"/proc/{process}/status")
  for line in status.read_text().splitlines():
    if line.startswith(field):
      return int(line.split()[1]) / 2**20
  return float("nan")


def machine() -> str:
  """One line on what this ran on."""
  import os

  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith("model name"):
        model = line.split(":", 1)[1].strip()
        break
  return f"{os.cpu_count()} cores of {model}"
