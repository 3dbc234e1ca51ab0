"""Rivals in processes of their own, asked in turn.

Each rival loads once and then answers one request at a time, so that rounds
alternate between rivals and the machine's noise falls on both alike, and each
one's memory is its own.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

_MARK = "@benchmark "


class Worker:
  """A rival's process.

  Args:
    module: run as `python -m module name argument ...`.
    name: which rival.
    *arguments: of its command line.
    python: the interpreter, for a rival whose packages do not go with ours.
  """

  def __init__(
    self, module: str, name: str, *arguments: str, python: str = sys.executable
  ):
    self._process = subprocess.Popen(
      [python, "-m", module, name, *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      # Rivals may share a GPU.
      env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ},
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


def torch_device() -> str:
  """Where a rival in torch runs: a GPU where it sees one."""
  import torch

  return "cuda" if torch.cuda.is_available() else "cpu"


def torch_device_gib() -> float:
  """Torch's largest use of the GPU's memory so far; 0 without one.

  Waits for the GPU, so that the time until then is that of the work.
  """
  import torch

  if not torch.cuda.is_available():
    return 0.0
  torch.cuda.synchronize()
  return torch.cuda.max_memory_allocated() / 2**30


def device_gib() -> float:
  """JAX's largest use of the first device's memory so far; 0 on the CPU."""
  import jax

  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use", 0) / 2**30


def machine() -> str:
  """One line on what this ran on."""
  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith("model name"):
        model = line.split(":", 1)[1].strip()
        break
  return ", ".join([*_gpus(), f"{os.cpu_count()} cores of {model}"])


def _gpus() -> list[str]:
  """The names of NVIDIA's GPUs here."""
  if not shutil.which("nvidia-smi"):
    return []
  asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
  return subprocess.run(
    asked, capture_output=True, text=True
  ).stdout.splitlines()
