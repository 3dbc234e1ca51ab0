"""The local queue: what is started, what is skipped, what is said."""

import dataclasses
import sys

import pytest

from launch import queue, runs

_CONFIG = "configs/quickstart.py"


def _run(folder, code):
  return runs.Run(folder, (sys.executable, "-c", code))


def test_plan_gives_each_run_its_own_folder():
  first, second = runs.plan(
    "train", _CONFIG, "runs/x", ["seed=1 harvest.sites='(2, 3)'", "seed=2"]
  )
  assert first.command[1:] == (
    "-m",
    "experiments.train",
    f"--config={_CONFIG}",
    f"--config.workdir={first.folder}",
    "--config.seed=1",
    "--config.harvest.sites=(2, 3)",
  )
  assert first.folder != second.folder


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    ([], "nothing to run"),
    (["a"], "'a' is not key=value"),
    (["seed=1", " seed=1"], "twice"),
    (["seed='1"], "No closing quotation"),
    (["workdir=x"], "workdir is the launcher's own"),
    (["train.sites=x"], "no setting 'train.sites'; did you mean 'train.site'"),
  ],
)
def test_plans_that_make_no_sense_are_refused(settings, says):
  with pytest.raises(ValueError, match=says):
    runs.plan("train", _CONFIG, "runs", settings)


def test_a_run_may_be_the_config_as_it_is():
  (run,) = runs.plan("train", _CONFIG, "runs", [""])
  assert run.folder.name.startswith("as_it_is_")
  with pytest.raises(ValueError, match="--binary=trian: there is no"):
    runs.plan("trian", _CONFIG, "runs", [""])
  with pytest.raises(FileNotFoundError, match="no file configs/none.py"):
    runs.plan("train", "configs/none.py", "runs", [""])


def test_finished_runs_are_not_started_again_and_failed_ones_are(tmp_path):
  good = _run(tmp_path / "good", "print('ran')")
  bad = _run(tmp_path / "bad", "print('ran'); raise SystemExit(3)")
  assert queue.work([good, bad], jobs=2) == [bad]
  assert queue.work([good, bad], jobs=1) == [bad]
  assert (tmp_path / "good/log.txt").read_text() == "ran\n"
  assert (tmp_path / "bad/log.txt").read_text() == "ran\nran\n"
  assert not dataclasses.replace(good, command=("other",)).is_done
  # The same command, of a Python elsewhere.
  again = dataclasses.replace(good, command=("python", *good.command[1:]))
  assert again.is_done
