"""The processes of one run on this machine: started, watched, ended together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence

from launch import gpus
from launch.runs import Run

# A process that failed leaves the others so many seconds to notice and to say
# so, as they do by themselves; then they are asked to end, and then killed.
NOTICE_S = 20.0
END_S = 10.0
# How our binaries begin an error, and Python the last line of a traceback.
_ERROR = re.compile(r"error: |stopped: |[A-Za-z_.]+(Error|Exception)\b")


class Group:
  """One run, started as one process or as several on loopback.

  Attributes:
    run: what was started.
    status: exit status of the first process that failed, 128 + the signal if
      one killed it; 0: none has failed.
    failed: which process that was.
  """

  def __init__(
    self,
    run: Run,
    count: int = 1,
    *,
    logs: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    notice_s: float = NOTICE_S,
    end_s: float = END_S,
  ):
    """Starts the processes; each appends to a log of its own.

    Args:
      run: what to start; its folder is made if need be.
      count: processes. Each of several is told `--distributed=` the address of
        the first, how many there are and which it is.
      logs: their names; default: `log_names`.
      environment: variables; None: this process's.
      notice_s: seconds that the others have once one has failed.
      end_s: seconds from being asked to end to being killed.
    """
    self.run, self.status, self.failed = run, 0, 0
    self._notice_s, self._end_s = notice_s, end_s
    self._kill_at: float | None = None
    self._ask_at: float | None = None
    run.folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}" if count > 1 else ""
    environment = os.environ if environment is None else environment
    self._processes, self._logs = [], []
    for index, log in enumerate(logs or log_names(count)):
      path = run.folder / log
      before = path.stat().st_size if path.exists() else 0
      self._logs.append((path, before))
      place = [f"--distributed={address},{count},{index}"] if address else []
      with open(path, "a", encoding="utf-8") as file:
        self._processes.append(
          subprocess.Popen(
            [*run.command, *place],
            stdout=file,
            stderr=file,
            env={**environment, **gpus.share(environment, count, index)},
          )
        )

  def is_over(self) -> bool:
    """Whether all have ended; ends what is left of a group with a failure."""
    now = time.monotonic()
    for index, process in enumerate(self._processes):
      code = process.poll()
      if code and not self.status:
        self.status, self.failed = code if code > 0 else 128 - code, index
        self._ask_at = now + self._notice_s
    if self._ask_at is not None and now >= self._ask_at:
      self.ask_to_end()
    if self._kill_at is not None and now >= self._kill_at:
      self._signal(signal.SIGKILL)
    return all(process.poll() is not None for process in self._processes)

  def error(self) -> str:
    """What the process that failed said last: its error, or its last line."""
    path, before = self._logs[self.failed]
    said = path.read_bytes()[before:].decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", said)]
    lines = [line for line in lines if line and not line.startswith("(--")]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["it said nothing"])[-1]

  def ask_to_end(self, seconds: float | None = None) -> None:
    """SIGTERM: training saves first. Killed if that takes too long.

    Args:
      seconds: what is too long; None: `end_s`.
    """
    if self._kill_at is None:
      self._kill_at = time.monotonic() + (seconds or self._end_s)
      self._signal(signal.SIGTERM)

  def _signal(self, number: signal.Signals) -> None:
    for process in self._processes:
      if process.poll() is None:
        process.send_signal(number)


def log_names(count: int) -> list[str]:
  """Files in a run's folder, one for each process."""
  return [f"log.{n}.txt" for n in range(count)] if count > 1 else ["log.txt"]


def free_port() -> int:
  """A port of loopback that nobody listens on."""
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]
