"""GPUs of one machine: each of those that compute at a time has its own."""

import sys

import pytest

from launch import gpus, queue, runs


def test_gpus_are_shared_evenly_or_refused():
  share = lambda listed, count, index: gpus.share(
    {"CUDA_VISIBLE_DEVICES": listed}, count, index
  )
  assert share("0,1,2,3", 2, 1) == {"CUDA_VISIBLE_DEVICES": "1,3"}
  assert share("0,1", 1, 0) == share("", 2, 0) == {}
  with pytest.raises(ValueError, match="list a multiple of 2"):
    share("0,1,2", 2, 0)


def test_all_there_are_if_none_are_named(tmp_path):
  program = tmp_path / "nvidia-smi"
  program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
  program.chmod(0o755)
  there = {"PATH": f"{tmp_path}:/bin:/usr/bin"}
  assert gpus.listed(there) == ["0", "1", "2"]
  assert gpus.listed(there | {"CUDA_VISIBLE_DEVICES": ""}) == []
  assert gpus.listed({"PATH": "/nowhere"}) == []


@pytest.mark.parametrize(
  ("jobs", "processes", "each"),
  [(1, 1, 4), (2, 1, 2), (0, 1, 1), (0, 2, 1)],
)
def test_runs_at_the_same_time_have_gpus_of_their_own(
  tmp_path, monkeypatch, jobs, processes, each
):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
  code = (
    "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True);"
    "time.sleep(1)"
  )
  planned = [
    runs.Run(tmp_path / str(n), (sys.executable, "-c", code)) for n in range(2)
  ]
  assert not queue.failures(planned, jobs, processes)
  used = [
    sorted(
      gpu
      for log in run.folder.glob("log*.txt")
      for gpu in log.read_text().strip().split(",")
    )
    for run in planned
  ]
  assert [len(gpus) for gpus in used] == [each * processes] * 2
  if jobs != 1:
    assert not set(used[0]) & set(used[1])


def test_jobs_that_cant_share_are_refused(tmp_path, monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
  run = runs.Run(tmp_path, (sys.executable, "-c", ""))
  with pytest.raises(ValueError, match="list a multiple of 2"):
    queue.failures([run], 2)
