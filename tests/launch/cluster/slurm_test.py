"""Jobs of Slurm: scripts, and submitit's whole path on a tiny Slurm."""

import os
import re
import subprocess
import sys

import pytest

from launch.cluster import slurm
from launch.runs import Run
from tests.launch.cluster import mini_slurm

# Waits for SIGTERM the first time, saves, and ends with 143; done the second.
_RESUMES = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
if (here / "saved").exists():
  print("goes on")
  sys.exit(0)
def save(number, frame):
  (here / "saved").touch()
  sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("began", flush=True)
(here / f"began{time.monotonic_ns()}").touch()
while not (here / "saved").exists():  # as the others are told
  time.sleep(0.05)
sys.exit(143)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  made = mini_slurm.Cluster(tmp_path)
  for name, value in made.environment.items():
    monkeypatch.setenv(name, value)
  # The code of this checkout in the jobs, as an installed one would be.
  monkeypatch.setenv("PYTHONPATH", os.getcwd())
  return made


def _run(folder, code, *arguments):
  folder.mkdir(exist_ok=True)
  return Run(folder, (sys.executable, "-c", code, *map(str, arguments)))


def test_an_array_runs_and_says_what_failed(cluster, tmp_path):
  runs = [
    _run(tmp_path / "good", "print('fine')"),
    _run(tmp_path / "bad", "raise ValueError('no such site')"),
  ]
  resources = slurm.Resources(gpus_per_node=0, at_a_time=1, partition="big")
  number = slurm.submit(runs, resources, tmp_path / "slurm", "two")
  script = cluster.scripts()[number]
  assert "#SBATCH --array=0-1%1" in script
  assert "#SBATCH --partition=big" in script and "#SBATCH --requeue" in script
  statuses = cluster.work()
  assert statuses[f"{number}_0"] == 0 and statuses[f"{number}_1"] != 0
  assert runs[0].is_done and not runs[1].is_done
  assert runs[1].failure["error"] == "ValueError: no such site"
  assert (tmp_path / "good/log.txt").read_text() == "fine\n"


def test_a_job_before_its_limit_saves_is_queued_again_and_goes_on(
  cluster, tmp_path
):
  run = _run(tmp_path / "run", _RESUMES, tmp_path / "run")
  resources = slurm.Resources(nodes=1, gpus_per_node=2, save_s=30)
  number = slurm.submit([run], resources, tmp_path / "slurm", "one")
  assert "#SBATCH --ntasks-per-node=2" in cluster.scripts()[number]
  both = lambda: len(list((tmp_path / "run").glob("began*"))) == 2
  assert set(cluster.work(stop_when=both).values()) == {0}
  assert run.is_done and run.failure is None
  for rank in range(2):
    log = (tmp_path / f"run/log.{rank}.txt").read_text()
    assert log == "began\ngoes on\n"


def test_what_comes_after_waits_for_it(cluster, tmp_path):
  run = _run(tmp_path / "run", "")
  first = slurm.submit([run], slurm.Resources(), tmp_path / "slurm", "first")
  slurm.submit([run], slurm.Resources(), tmp_path / "slurm", "then", first)
  assert (
    f"#SBATCH --dependency=afterok:{first}"
    in list(cluster.scripts().values())[1]
  )


def test_scripts_are_shell_with_the_resources_asked_for(tmp_path):
  runs = [_run(tmp_path / str(n), "") for n in range(3)]
  text = slurm.script(
    runs,
    slurm.Resources(
      account="me",
      hours=1.5,
      nodes=2,
      gpus_per_node=4,
      mem_gb=100,
      setup=("module load cuda",),
    ),
    tmp_path,
    "name",
  )
  found = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))
  wanted = {
    "account": "me",
    "array": "0-2%3",
    "gpus-per-node": "4",
    "mem": "100GB",
    "nodes": "2",
    "ntasks-per-node": "4",
    "time": "90",
    "signal": "USR2@180",
  }
  assert wanted.items() <= found.items()
  assert text.index("module load cuda") < text.index("srun")
  subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
  ("values", "match"),
  [
    ({"nodes": 0}, "--nodes=0: expected at least 1"),
    ({"gpus_per_node": -1}, "--gpus_per_node=-1"),
    ({"hours": 0.05}, "--hours=0.05: expected more than twice the 180 s"),
  ],
)
def test_resources_that_make_no_sense(values, match):
  with pytest.raises(ValueError, match=match):
    slurm.Resources(**values)


def test_no_slurm_here_is_said(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(RuntimeError, match="no Slurm here.*--dry_run"):
    slurm.submit([_run(tmp_path, "")], slurm.Resources(), tmp_path, "name")


def test_the_binary_shows_a_sweep_without_submitting(tmp_path):
  command = [sys.executable, "-m", "launch.slurm", f"--root={tmp_path}/out"]
  command += ["--sweep=configs/sweeps/gemma_scope_2b.py", "--dry_run"]
  found = subprocess.run(command, check=True, capture_output=True, text=True)
  assert "#SBATCH --array=0-197%198" in found.stdout
  assert found.stdout.count("-m experiments.harvest") == 2
  assert not (tmp_path / "out").exists()
  refused = subprocess.run(
    [*command, "--run=a=1"], capture_output=True, text=True
  )
  assert refused.returncode == 1 and "leave those out" in refused.stderr
