"""`experiments.plan` from the command line."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[3]


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "experiments.plan", *arguments],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    timeout=100,
  )


def test_quickstart():
  found = run("--config=configs/quickstart.py", "--config.data.source=live")
  assert found.returncode == 0, found.stderr
  assert "gemma-3-270m" in found.stdout
  assert "Live: the model runs while training" in found.stdout
  assert "Store or make again" not in found.stdout
  assert "activations of one site of 9B" in found.stdout


def test_gemma_2_2b_simulated_with_a_page(tmp_path):
  page = tmp_path / "plan.html"
  found = run(
    "--config=configs/gemma2_2b.py:res.12,65k",
    "--config.train.shuffle=global",
    "--config.train.tokens=100000000",
    *("--accelerator=tpu_v5p", "--devices=4", "--utilisation=0.4"),
    *("--simulate", "--trainers=3", "--services=2", "--preemption_hours=1"),
    f"--page={page}",
  )
  assert found.returncode == 0, found.stderr
  assert "4 x tpu_v5p" in found.stdout and "40%" in found.stdout
  assert "67.1 TiB" in found.stdout  # 8B rows of 2304 float32, and checks
  assert "Simulated: servers and trainers" in found.stdout
  assert f"written  {page}" in found.stdout
  assert "Plan of runs/gemma-2-2b/res.12_65k" in page.read_text()


def test_free_storage_is_never_as_dear_as_making_again():
  found = run("--config=configs/quickstart.py", "--tib_month_dollars=0")
  assert found.returncode == 0, found.stderr
  assert "never equal, as storing is free" in found.stdout


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--servers=3", "--servers does nothing without --simulate"),
    ("--peak_tflops=-5", "--peak_tflops=-5.0: expected 0 or more"),
    ("--device_dollars=nan", "--device_dollars=nan: expected 0 or more"),
  ],
)
def test_errors_are_short(flag, said):
  found = run("--config=configs/quickstart.py", flag)
  assert found.returncode == 1
  assert said in found.stderr
  assert "Traceback" not in found.stderr
