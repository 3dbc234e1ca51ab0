"""Commands of the launchers: what is no flag, and a root's name."""

import os
import pathlib
import subprocess
import sys

import pytest

from launch.sweeps import plan, reading

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = "configs/sweeps/quickstart.py"


def start(module, *arguments, cwd=ROOT):
  return subprocess.run(
    [sys.executable, "-m", f"launch.{module}", *arguments],
    cwd=cwd,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ("module", "given"),
  [
    ("local", ("--config=configs/quickstart.py", "--run=seed=1")),
    ("sweep", (f"--sweep={SWEEP}", "--dry_run")),
    ("slurm", (f"--sweep={SWEEP}", "--dry_run")),
  ],
)
def test_an_unquoted_setting_is_not_dropped(module, given, tmp_path):
  done = start(module, *given, f"--root={tmp_path / 'r'}", "train.site=res.9")
  assert done.returncode == 1
  assert "error: train.site=res.9: expected flags only" in done.stderr
  assert not (tmp_path / "r").exists()


def test_a_relative_root_names_the_same_runs(tmp_path):
  made = plan.make(reading.sweep(str(ROOT / SWEEP)))
  harvests, groups = made.runs(str(tmp_path / "r"))
  for run in (*harvests, *groups):
    run.folder.mkdir(parents=True)
    run.has_ended(0, "")
  relative = os.path.relpath(tmp_path / "r", ROOT)
  done = start(
    "sweep", f"--sweep={ROOT / SWEEP}", f"--root={relative}", "--status"
  )
  assert f"{len(groups)} of {len(groups)} runs done" in done.stdout, done.stderr
