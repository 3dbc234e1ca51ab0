"""Two processes that train one run through `jax.distributed`."""

import contextlib
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from gemmascope_jax import metrics, sae, training
from gemmascope_jax.parallel import processes
from tests.training import run_test

_ROOT = pathlib.Path(__file__).parent.parent.parent
_PATIENCE_S = 240


@contextlib.contextmanager
def _two(folder, pause=0.0):
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  command = [sys.executable, "-m", "tests.training.train_process"]
  started = [
    subprocess.Popen(
      [*command, str(port), str(process), str(folder), str(pause)],
      cwd=_ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for process in range(2)
  ]
  try:
    yield started
  finally:
    for process in started:
      process.kill()
      process.wait()
      process.stdout.close()


def _end(started):
  said = [process.communicate(timeout=_PATIENCE_S)[0] for process in started]
  return [process.returncode for process in started], said


def test_two_processes_train_what_one_does(tmp_path):
  run_test._train(tmp_path / "one")
  with _two(tmp_path / "two") as started:
    codes, said = _end(started)
  assert codes == [0, 0], said
  lines = [
    metrics.read_jsonl(tmp_path / name / training.METRICS)
    for name in ("one", "two")
  ]
  for one, two in zip(*lines, strict=True):
    assert (one["name"], one["step"]) == (two["name"], two["step"])
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
  for member in (0, 1):
    np.testing.assert_allclose(
      sae.load(tmp_path / "two", member).params.w_dec,
      sae.load(tmp_path / "one", member).params.w_dec,
      atol=1e-3,
    )


def test_sigterm_to_one_of_them_saves_the_same_step_of_both(tmp_path):
  with _two(tmp_path, pause=0.1) as started:
    deadline = time.monotonic() + _PATIENCE_S
    path = tmp_path / training.METRICS
    while not (path.exists() and metrics.read_jsonl(path)):
      assert time.monotonic() < deadline
      time.sleep(0.1)
    started[1].send_signal(signal.SIGTERM)
    codes, said = _end(started)
  assert codes == [143, 143], said
  assert "asked to end" in said[0]
  (saved, again) = (
    max(int(path.name) for path in member.checkpoints.glob("[0-9]*"))
    for member in training.members(tmp_path, run_test.SWEEP)
  )
  assert saved == again < 30
  found = run_test._train(tmp_path)  # one process, one device
  assert len(found) == 2
  steps = [
    line["step"]
    for line in metrics.read_jsonl(tmp_path / training.METRICS)
    if line["name"] == run_test.NAMES[0]
  ]
  assert steps == [4, 9, 14, 19, 24, 29]


def test_one_process_agrees_with_itself():
  assert processes.agreed([True, False]) == [True, False]
  assert processes.is_first()
  processes.wait("here")
