"""Templates: what they render to is valid, and its commands are ours."""

import dataclasses
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import jsonschema
import pytest
import yaml

from launch.cluster import templates
from tests.launch.cluster import schemas

_GPU = templates.Cluster(
  name="gemma-2b",
  image="example.org/gemmascope_jax:cuda",
  volume="scratch",
  accelerator="nvidia-h100-80gb",
  chips=8,
  hosts=2,
  servers=2,
  model=16,
)
_TPU = templates.Cluster(
  name="gemma-2b",
  image="example.org/gemmascope_jax:tpu",
  volume="scratch",
  accelerator="tpu-v5-lite-podslice",
  topology="4x4",
  chips=4,
  hosts=4,
)
_SKY = templates.Cluster(
  name="gemma-2b", bucket="gs://mine", accelerator="H100", chips=8, model=4
)
_TPU_IN_SKY = dataclasses.replace(_SKY, accelerator="tpu-v5e-8")
_CONFIG = "configs/gemma2_2b.py:res.12,16k"
_SET = ('train.members=({"width": 512},)', "lm.dtype=bfloat16")


def _jobs(cluster):
  text = templates.render("jobset", cluster, _CONFIG, _SET)
  found = yaml.safe_load(text)
  jsonschema.validate(found, schemas.JOBSET)
  return found["spec"]


def _pod(job):
  return job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("cluster", [_GPU, _TPU])
def test_a_jobset_is_valid_and_in_order(cluster):
  spec = _jobs(cluster)
  jobs = {job["name"]: job for job in spec["replicatedJobs"]}
  assert list(jobs) == ["harvest", "serve", "train", "evaluate"]
  before = None
  for name, job in jobs.items():
    needs = [each["name"] for each in job.get("dependsOn", [])]
    assert needs == ([before] if before else [])
    before = name
    pod = _pod(job)
    assert [each["name"] for each in pod["containers"]] == [name]
    (claim,) = pod["volumes"]
    assert claim["persistentVolumeClaim"]["claimName"] == "scratch"
    count = cluster.servers if name == "serve" else cluster.hosts
    assert job["template"]["spec"]["completions"] == count
    assert ("nodeSelector" in pod) == (name != "serve")
  assert spec["successPolicy"]["targetReplicatedJobs"] == ["evaluate"]
  limits = _pod(jobs["train"])["containers"][0]["resources"]["limits"]
  chips = "google.com/tpu" if cluster.is_tpu else "nvidia.com/gpu"
  assert limits == {chips: cluster.chips}


def test_processes_find_each_other():
  spec = _jobs(_GPU)
  train = _pod(spec["replicatedJobs"][2])["containers"][0]["args"][0]
  # JobSet: the first pod of a job is SET-JOB-0-0, in the set's own domain.
  place = "--distributed=gemma-2b-train-0-0.gemma-2b:8476,2,$JOB_COMPLETION"
  assert place in train
  assert (
    "grpc://gemma-2b-serve-0-0.gemma-2b:8815,gemma-2b-serve-0-1.gemma-2b:8815"
    in train
  )
  assert "--config.mesh.data=1 --config.mesh.model=16" in train
  train = _pod(_jobs(_TPU)["replicatedJobs"][2])["containers"][0]["args"][0]
  assert "--distributed=on " in train


def _scripts():
  yield from (
    (job["name"], _pod(job)["containers"][0]["args"][0])
    for job in _jobs(_GPU)["replicatedJobs"]
  )
  for task in _tasks():
    yield f"sky {task['name']}", task["run"]


def _tasks():
  text = templates.render("skypilot", _SKY, _CONFIG, _SET)
  header, *tasks = yaml.safe_load_all(text)
  assert header == {"name": "gemma-2b"}
  for task in tasks:
    jsonschema.validate(task, schemas.SKYPILOT_TASK)
  return tasks


def test_a_skypilot_pipeline_is_valid():
  tasks = _tasks()
  assert [task["name"] for task in tasks] == ["harvest", "train", "evaluate"]
  for task in tasks:
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["file_mounts"]["/data"]["name"] == "mine"
    assert "--config.harvest.root=gs://mine/stores" in task["run"]


def test_every_command_is_one_that_our_binaries_take(tmp_path, monkeypatch):
  """Each line of the scripts, as bash gives it to Python."""
  monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
  # Instead of Python: prints the arguments it got.
  python = tmp_path / "python"
  python.write_text(
    f"#!{sys.executable}\nimport json, sys\n"
    "sys.stdout.write(json.dumps(sys.argv[1:]) + '\\n')\n"
  )
  python.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  commands = []
  for _, script in _scripts():
    # A server in the background is killed at the end: let it print first.
    script = script.replace("kill $server", "wait $server")
    found = subprocess.run(
      ["bash", "-eu", "-c", script], capture_output=True, text=True, check=True
    )
    commands += [json.loads(line) for line in found.stdout.splitlines()]
  modules = [command[1] for command in commands]
  stations = ("harvest", "serve", "train", "evaluate")
  assert modules[:4] == [f"experiments.{name}" for name in stations]
  # A server in the background may be printed after the trainer.
  assert set(modules[4:]) == {
    f"experiments.{name}" for name in (*stations, "report")
  }
  ours = [each for each in commands if each[1] != "experiments.serve"]
  for command in (ours[0], ours[4]):  # the others have the same flags
    found = subprocess.run(
      [sys.executable, *command, "--check_only"],
      capture_output=True,
      text=True,
    )
    said = "checked: would write below /data/gemma-2b\n"
    assert found.stdout == said, found.stderr
  serve = next(each for each in commands if each[1] == "experiments.serve")
  found = subprocess.run(
    [sys.executable, *serve], capture_output=True, text=True
  )
  assert "no activations in /data/gemma-2b" in found.stderr


@pytest.mark.parametrize(
  ("values", "match"),
  [
    ({"name": "Gemma_2B"}, "--name='Gemma_2B': expected lower-case"),
    ({"accelerator": ""}, "expected --accelerator"),
    ({"hosts": 0}, "--hosts=0: expected at least 1"),
    ({"model": 3}, "--model=3: expected a divisor of the 16 devices"),
    ({"topology": "2x2"}, "has 4 chips, but 2 hosts with 8 each have 16"),
    ({"image": "a: b"}, "--image='a: b': expected letters, digits"),
    ({"topology": "big"}, "--topology='big': expected such as 4x4"),
  ],
)
def test_clusters_that_make_no_sense(values, match):
  with pytest.raises(ValueError, match=match):
    templates.Cluster(**{**vars(_GPU), **values})


@pytest.mark.parametrize(
  ("template", "cluster", "match"),
  [
    ("helm", _GPU, "expected one of jobset, skypilot"),
    ("jobset", _SKY, "expected --image"),
    ("skypilot", _TPU_IN_SKY, "TPUs: JobSet"),
    ("skypilot", _GPU, "--bucket='': expected gs://NAME or s3://NAME"),
  ],
)
def test_what_is_missing_is_named(template, cluster, match):
  with pytest.raises(ValueError, match=match):
    templates.render(template, cluster, _CONFIG)
  with pytest.raises(ValueError, match="'train' is not key=value"):
    templates.render("jobset", _GPU, _CONFIG, ["train"])
  with pytest.raises(ValueError, match=r"mesh.model is the launcher's own"):
    templates.render("jobset", _GPU, _CONFIG, ["mesh.model=2"])
  with pytest.raises(ValueError, match="expected one line"):
    templates.render("jobset", _GPU, _CONFIG, ["seed=\n2"])


def test_the_dockerfile_copies_what_there_is(monkeypatch):
  lines = pathlib.Path("launch/Dockerfile").read_text().splitlines()
  copied = [
    word
    for line in lines
    if line.startswith("COPY")
    for word in line.split()[1:-1]
  ]
  assert copied and all(pathlib.Path(path).exists() for path in copied)
  (extras,) = re.findall(r'"\.\[\$\{EXTRA\},(\w+)\]"', "\n".join(lines))
  given = {}
  monkeypatch.setattr("setuptools.setup", lambda **values: given.update(values))
  runpy.run_path("setup.py")
  (default,) = [
    line.split("=")[1] for line in lines if line.startswith("ARG EXTRA")
  ]
  assert {extras, default, "tpu", "demo"} <= set(given["extras_require"])
  packages = {name.split(".")[0] for name in given["packages"]}
  assert packages <= set(copied)
