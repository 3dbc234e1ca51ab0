"""The local queue: what is started, what is skipped, what is said."""

import dataclasses
import sys

import pytest

from launch import queue, runs


def _run(folder, code):
  return runs.Run(folder, (sys.executable, "-c", code))


def test_plan_gives_each_run_its_own_folder():
  first, second = runs.plan(
    "train", "c.py", "runs/x", ["a.b=1 c='(2, 3)'", "a.b=2"]
  )
  assert first.command[1:] == (
    "-m",
    "experiments.train",
    "--config=c.py",
    f"--config.workdir={first.folder}",
    "--config.a.b=1",
    "--config.c=(2, 3)",
  )
  assert first.folder != second.folder


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    ([], "nothing to run"),
    (["a"], "'a' is not key=value"),
    (["a=1"] * 2, "twice"),
  ],
)
def test_plans_that_make_no_sense_are_refused(settings, says):
  with pytest.raises(ValueError, match=says):
    runs.plan("train", "c.py", "runs", settings)


def test_finished_runs_are_not_started_again_and_failed_ones_are(tmp_path):
  good = _run(tmp_path / "good", "print('ran')")
  bad = _run(tmp_path / "bad", "print('ran'); raise SystemExit(3)")
  assert queue.work([good, bad], jobs=2) == [bad]
  assert queue.work([good, bad], jobs=1) == [bad]
  assert (tmp_path / "good/log.txt").read_text() == "ran\n"
  assert (tmp_path / "bad/log.txt").read_text() == "ran\nran\n"
  assert not dataclasses.replace(good, command=("other",)).is_done
