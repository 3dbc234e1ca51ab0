"""Several processes fill one store."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tiny_gemma
from tiny_gemma import OPTIONS, POLICY

from gemmascope_jax.data.lock import LockedError, write_lock
from gemmascope_jax.data.stores.files import folder
from gemmascope_jax.data.stores.harvest import harvest, plan
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_writing import (
  LOCK,
  part_lock,
  part_shards,
  require_same_plan,
)
from tests.digests import digests

SCRIPT = pathlib.Path(__file__).with_name("harvest_part.py")
SITES = ("res.0", "att.0")


def contents(root):
  """Of every file; the code version apart, which may change meanwhile."""
  files = digests(root)
  del files["manifest.json"]
  manifest = json.loads((pathlib.Path(root) / "manifest.json").read_text())
  del manifest["code"]
  return files, manifest


def make(lm, root, **options):
  return harvest(
    lm, tiny_gemma.windows(), SITES, root, POLICY, **{**OPTIONS, **options}
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Made by one process with one CPU device, as the others are."""
  root = tmp_path_factory.mktemp("whole") / "store"
  assert finish(start(root, 0, 1)) == 0
  return contents(root)


def start(root, *arguments):
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(sys.path),
    "XLA_FLAGS": "",
  }
  return subprocess.Popen(
    [sys.executable, str(SCRIPT), str(root), *map(str, arguments)],
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  _, said = process.communicate(timeout=120)
  assert process.returncode in (0, -9), said
  return process.returncode


def test_two_processes_one_killed_and_started_again(tmp_path, whole):
  root = tmp_path / "store"
  processes = [start(root, 0, 2), start(root, 1, 2, 3)]
  assert finish(processes[1]) == -9
  assert not (root / "manifest.json").exists()
  assert finish(start(root, 1, 2)) == 0
  assert finish(processes[0]) == 0
  assert contents(root) == whole
  Store.open(root).verify()


def test_parts_are_contiguous_and_all(store):
  for parts in (1, 2, 3, 7, 8, 20):
    slices = [part_shards(store.plan, part, parts) for part in range(parts)]
    assert [shard for part in slices for shard in part] == list(range(8))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_leftovers_of_other_parts_are_not_touched(lm, tmp_path):
  root = tmp_path / "s"
  (root / "res.0").mkdir(parents=True)
  mine, other, common = (
    root / "res.0/00006.npy.1.incomplete",
    root / "res.0/00001.npy.1.incomplete",
    root / "tokens.npy.1.incomplete",
  )
  for path in (mine, other, common):
    path.write_text("half")
  with pytest.raises(ValueError, match="is not a store but holds res.0"):
    make(lm, root, part=(1, 2))
  (root / "plan.json").write_text(json.dumps(plan_of(lm).to_dict()))
  with pytest.raises(TimeoutError, match=r"shards 0\.\.3 of res\.0"):
    make(lm, root, part=(1, 2), patience_s=0)
  assert not mine.exists() and not common.exists() and other.exists()
  assert len(list((root / "res.0").glob("?????.json"))) == 4
  make(lm, root)
  assert not other.exists()


@pytest.mark.parametrize("look", ["entries", "sizes"])
def test_another_process_writes_its_plan_during_the_look(lm, tmp_path, look):
  files = folder(tmp_path / "s")
  listed = getattr(files, look)

  def then_it_is_written(*below):
    found = listed(*below)
    files.root.mkdir(exist_ok=True)
    (files.root / "plan.json").write_text(json.dumps(plan_of(lm).to_dict()))
    return found

  setattr(files, look, then_it_is_written)
  require_same_plan(files, plan_of(lm))


def plan_of(lm):
  options = {k: v for k, v in OPTIONS.items() if k != "progress"}
  return plan(lm, tiny_gemma.windows(), SITES, POLICY, **options)


def test_the_same_part_twice_is_refused(lm, tmp_path):
  root = tmp_path / "s"
  with write_lock(root, part_lock(0, 2)):
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
      make(lm, root, part=(0, 2))
    # One that would do all of it doesn't start beside it, either.
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
      make(lm, root)
  make(lm, root)
  assert not list(root.glob("*.lock"))


def test_a_process_that_does_all_keeps_parts_out(lm, tmp_path):
  with write_lock(tmp_path / "s", LOCK):
    with pytest.raises(LockedError):
      make(lm, tmp_path / "s", part=(0, 2), patience_s=0.2)


def test_more_parts_than_shards(lm, tmp_path):
  with pytest.raises(TimeoutError):
    make(lm, tmp_path / "s", rows=100, part=(0, 3), patience_s=0)
  assert make(lm, tmp_path / "s", rows=100, part=(2, 3)).rows == 100
  assert make(lm, tmp_path / "s", rows=100, part=(0, 3)).rows == 100


@pytest.mark.parametrize("part", [(1, 1), (-1, 2), (0, 0)])
def test_no_such_part(lm, tmp_path, part):
  with pytest.raises(ValueError, match=f"part {part[0]} of {part[1]}"):
    make(lm, tmp_path / "s", part=part)
