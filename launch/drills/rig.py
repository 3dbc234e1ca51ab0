"""Runs a binary as two processes, breaks something, and compares the bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from launch import group

PROCESSES = 2
PEER_TIMEOUT_S = 20
_MOST_S = 600.0  # of one command; what takes longer hangs
_SETTINGS = {
  "harvest.rows": "32768",
  "harvest.rows_per_shard": "8192",
  "recipe.width": "512",
  "train.tokens": "65536",
  "train.checkpoint_every": "8",
  "train.sparsity_coefficients": "(5e-5,)",
  "mesh.model": str(PROCESSES),
  "progress": "False",
}
# A process whose clock is wrong by so many seconds (the first argument).
_SKEWED = (
  "import runpy, sys, time;"
  "off = float(sys.argv.pop(1)); now, now_ns = time.time, time.time_ns;"
  "time.time = lambda: now() + off;"
  "time.time_ns = lambda: now_ns() + int(off * 1e9);"
  "name = sys.argv.pop(1);"
  "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


class Hang(Exception):
  """A command neither ended nor said anything in time."""


class Job:
  """One binary, as two processes on loopback.

  Attributes:
    logs: what each process printed, one file each.
  """

  def __init__(
    self,
    binary: str,
    workdir: pathlib.Path,
    *,
    settings: dict[str, str] | None = None,
    clocks: Sequence[float] = (),
    limit_bytes: int = 0,
  ):
    """Starts it.

    Args:
      binary: module in experiments/.
      workdir: of the run; logs go beside it.
      settings: of the config, besides those of all drills.
      clocks: seconds by which each process's clock is wrong.
      limit_bytes: no file of the first process can grow over that, as on a
        full disk; 0: no limit.
    """
    self._started, self._workdir = time.monotonic(), workdir
    self.logs, self._processes = [], []
    port = group.free_port()
    values = {**_SETTINGS, **(settings or {}), "workdir": str(workdir)}
    for index in range(PROCESSES):
      start = [sys.executable, "-m", f"experiments.{binary}"]
      if clocks:
        start = [sys.executable, "-c", _SKEWED, str(clocks[index])]
        start.append(f"experiments.{binary}")
      command = [
        *start,
        "--config=configs/quickstart.py",
        f"--distributed=127.0.0.1:{port},{PROCESSES},{index}",
        f"--peer_timeout={PEER_TIMEOUT_S}",
        *(f"--config.{key}={value}" for key, value in values.items()),
      ]
      if limit_bytes and index == 0:
        blocks = limit_bytes // 1024
        command = [
          "bash",
          "-c",
          f'ulimit -f {blocks}; exec "$@"',
          "-",
          *command,
        ]
      log = workdir.parent / f"{workdir.name}.{binary}.{index}.log"
      self.logs.append(log)
      with open(log, "w", encoding="utf-8") as file:
        self._processes.append(
          subprocess.Popen(
            command, stdout=file, stderr=file, env=_environment()
          )
        )

  def until(self, there: Callable[[], bool]) -> None:
    """Waits for something to happen.

    Raises:
      Hang: the job ended before, or it takes too long.
    """
    while not there():
      if all(process.poll() is not None for process in self._processes):
        raise Hang(f"ended too early: {self.said()}")
      self._check_time()
      time.sleep(0.02)

  def send(self, number: signal.Signals, index: int | None = None) -> None:
    """A signal to one process; None: to all."""
    for each, process in enumerate(self._processes):
      if index in (None, each) and process.poll() is None:
        process.send_signal(number)

  def end(self, without: Sequence[int] = ()) -> tuple[list[int], float]:
    """Waits for all processes but those `without`, which are then killed.

    Returns:
      Exit statuses, 128 + the signal of those ended by one; seconds waited.

    Raises:
      Hang: one has not ended in time.
    """
    start = time.monotonic()
    try:
      for index, process in enumerate(self._processes):
        while index not in without and process.poll() is None:
          self._check_time()
          time.sleep(0.05)
    finally:
      took = time.monotonic() - start
      self.send(signal.SIGKILL)
    codes = [process.wait() for process in self._processes]
    return [code if code >= 0 else 128 - code for code in codes], took

  def said(self) -> str:
    """What the first process with a message said: up to its first full stop."""
    for log in self.logs:
      lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
      for line in lines:
        if line.startswith(("error:", "stopped")):
          return self._everywhere(re.split(r"\. | \(", line)[0])
    return "nothing"

  def _everywhere(self, text: str) -> str:
    """Without the names of this machine and of the folder of these drills."""
    text = text.replace(str(self._workdir), "WORKDIR")
    return text.replace(f"on {socket.gethostname()}", "on HOST")

  def _check_time(self) -> None:
    if time.monotonic() - self._started > _MOST_S:
      self.send(signal.SIGKILL)
      raise Hang(f"not over after {_MOST_S:.0f} s: {self.said()}")


@contextlib.contextmanager
def job(*arguments, **keywords) -> Iterator[Job]:
  """A `Job` of which nothing is left behind, whatever happens."""
  started = Job(*arguments, **keywords)
  try:
    yield started
  finally:
    started.send(signal.SIGKILL)


def finish(binary: str, workdir: pathlib.Path, **keywords) -> None:
  """Runs it to its end.

  Raises:
    Hang: it does not get there.
  """
  with job(binary, workdir, **keywords) as started:
    codes, _ = started.end()
    if any(codes):
      raise Hang(f"exit statuses {codes}: {started.said()}")


def digests(workdir: pathlib.Path) -> dict[str, str]:
  """SHA-256 of what a run is for: the store's rows and the SAEs."""
  patterns = ("store/*/*.npy", "store/*/*/*.npy", "train/saes/*/*")
  return {
    str(path.relative_to(workdir)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for pattern in patterns
    for path in sorted(workdir.glob(pattern))
  }


def steps(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Whole checkpoints of a run's SAE, by age."""
  found = workdir.glob("train/checkpoints/*/*")
  whole = [path for path in found if path.name.isdigit()]
  return sorted(whole, key=lambda path: int(path.name))


def _environment() -> dict[str, str]:
  """One device a process, and no deadlock of many on few cores."""
  flags = os.environ.get("XLA_FLAGS", "")
  alone = f"{flags} --xla_force_host_platform_device_count=1".strip()
  return {"PJRT_NPROC": "16", **os.environ, "XLA_FLAGS": alone}
