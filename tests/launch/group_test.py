"""Processes of one run: told who they are, and ended together."""

import re
import signal
import subprocess
import sys
import time

from launch import group, queue, runs

_SAY = "import sys; print(sys.argv[-1])"
# The second process fails; the first would sleep on, and ignores SIGTERM.
_ONE_DIES = """
import signal, sys, time
if sys.argv[-1].endswith(",1"):
  raise SystemExit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)
"""


def _run(folder, code):
  return runs.Run(folder, (sys.executable, "-c", code))


def _wait(started, most_s=20.0):
  until = time.monotonic() + most_s
  while not started.is_over():
    assert time.monotonic() < until, "the group has not ended"
    time.sleep(0.02)


def test_each_process_is_told_where_the_first_is_and_which_it_is(tmp_path):
  assert queue.work([_run(tmp_path, _SAY)], 1, processes=3) == []
  said = [(tmp_path / f"log.{n}.txt").read_text().strip() for n in range(3)]
  (address,) = {text.rpartition(",")[0] for text in said}
  assert re.fullmatch(r"--distributed=127\.0\.0\.1:\d+,3", address)
  assert [text.rpartition(",")[2] for text in said] == ["0", "1", "2"]
  assert queue.work([_run(tmp_path, _SAY)], 1, processes=3) == []
  assert (tmp_path / "log.0.txt").read_text().count("\n") == 1  # done before


def test_a_process_alone_is_told_nothing(tmp_path):
  _wait(group.Group(_run(tmp_path, _SAY)))
  assert (tmp_path / "log.txt").read_text().strip() == "-c"


def test_one_that_dies_ends_the_others_in_time(tmp_path):
  start = time.monotonic()
  started = group.Group(_run(tmp_path, _ONE_DIES), 2, notice_s=0.5, end_s=0.5)
  _wait(started)
  assert 0.9 < time.monotonic() - start < 10
  assert (started.status, started.failed) == (7, 1)


def test_a_killed_process_counts_as_128_and_the_signal(tmp_path):
  code = "import os, sys; os.kill(os.getpid(), 9)"
  assert queue.failures([_run(tmp_path, code)], 1, 1) == {
    _run(tmp_path, code): 128 + signal.SIGKILL
  }


def test_failures_are_told_in_the_order_in_which_they_happen(tmp_path):
  slow = _run(tmp_path / "slow", "import time; time.sleep(1); exit(3)")
  fast = _run(tmp_path / "fast", "exit(4)")
  assert list(queue.failures([slow, fast], 2).items()) == [(fast, 4), (slow, 3)]


def test_a_launcher_that_is_asked_to_end_asks_its_runs(tmp_path):
  """In a process of its own: it gets SIGTERM, and so does what it runs."""
  code = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit('asked'))\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)"
  )
  launcher = (
    "import pathlib, sys; from launch import queue, runs\n"
    f"run = runs.Run(pathlib.Path({str(tmp_path)!r}),"
    f" (sys.executable, '-c', {code!r}))\n"
    "queue.work([run], 1, processes=2)"
  )
  process = subprocess.Popen([sys.executable, "-c", launcher])
  logs = [tmp_path / "log.0.txt", tmp_path / "log.1.txt"]
  until = time.monotonic() + 20
  while not all(x.exists() and "ready" in x.read_text() for x in logs):
    assert time.monotonic() < until
    time.sleep(0.05)
  process.terminate()
  assert process.wait(20) == 128 + signal.SIGTERM
  assert all("asked" in log.read_text() for log in logs)
