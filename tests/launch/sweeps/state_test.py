"""What a sweep left on disk."""

import subprocess
import sys

import pytest

from launch import queue, runs
from launch.sweeps import plan, reading, state
from launch.sweeps.reading import Sweep

_ENTRIES = ({"train.site": "res.5"}, {"train.site": "mlp.5"}, {"seed": 1})


@pytest.fixture
def made():
  return plan.make(Sweep("configs/quickstart.py", _ENTRIES))


def test_harvests_are_remembered_as_they_were(made, tmp_path):
  assert state.kept(str(tmp_path), "configs/quickstart.py") == plan.Kept()
  state.remember(str(tmp_path), made)
  kept = state.kept(str(tmp_path), "configs/quickstart.py")
  again = plan.make(made.sweep, kept)
  assert again.runs("x") == made.runs("x")
  assert again.harvests[0] is kept.harvests[0]
  with pytest.raises(ValueError, match="holds a sweep of configs/quickstart"):
    state.kept(str(tmp_path), "configs/zoo.py")


def test_saes_stay_in_their_runs_wherever_their_entries_go(tmp_path):
  def planned(*widths, site="res.5"):
    """Plans with what is remembered; SAEs' widths by run."""
    entries = tuple(
      {"train.site": site, "recipe.width": width, "train.members": ()}
      | {"train.sparsity_coefficients": (1e-4,)}
      for width in widths
    )
    sweep = Sweep("configs/quickstart.py", entries, latents_per_run=3000)
    made = plan.make(sweep, state.kept(str(tmp_path), sweep.config))
    state.remember(str(tmp_path), made)
    return made, [[each.width for each in x.recipes] for x in made.groups]

  before, widths = planned(1024, 1536, 2048)
  assert widths == [[1024, 1536], [2048]]
  runs_before = before.runs("x")
  after, widths = planned(512, 2048, 256, 1024, 1536)
  assert widths == [[1024, 1536], [2048, 512, 256]]
  assert after.groups[0].name == before.groups[0].name
  assert after.runs("x")[1][0] == runs_before[1][0]
  assert planned(512)[1] == [[512]]
  assert planned(768, site="mlp.5")[1] == [[768]]
  # All is as it was, when the entries come back.
  again, widths = planned(1024, 1536, 2048)
  assert widths == [[1024, 1536], [2048]]
  assert again.runs("x") == runs_before


def test_the_table_says_what_failed_and_why(made, tmp_path):
  root = str(tmp_path)
  _, groups = made.runs(root)
  good, bad = (
    runs.Run(run.folder, (sys.executable, "-c", code))
    for run, code in zip(
      groups,
      ("print('done')", "raise ValueError('lambda is too large')"),
      strict=False,
    )
  )
  ended = []
  failed = queue.failures([good, bad], 2, ended=ended.append)
  assert list(failed) == [bad] and sorted(map(str, ended)) == sorted(
    map(str, [good, bad])
  )
  assert bad.failure == {
    "status": 1,
    "error": "ValueError: lambda is too large",
  }
  lines = state.table(made, root).splitlines()
  assert lines[0].startswith("waiting  2_sites")
  # Done, but with another command than the plan's: to be run again.
  assert lines[1].startswith("begun    res.5")
  assert lines[2].startswith("FAILED   mlp.5")
  assert lines[2].endswith("ValueError: lambda is too large")
  assert lines[3].startswith("waiting  res.5")
  assert lines[-1] == "0 of 3 runs done, 0 of 12 SAEs; 1 failed"
  mended = runs.Run(bad.folder, (sys.executable, "-c", "pass"))
  assert not queue.failures([mended], 1) and mended.failure is None


def test_an_old_failure_is_not_taken_for_a_new_one(tmp_path):
  run = lambda code: runs.Run(tmp_path, (sys.executable, "-c", code))
  queue.failures([run("print('error: old'); raise SystemExit(1)")], 1)
  assert run("").failure["error"] == "error: old"
  queue.failures([run("raise SystemExit(3)")], 1)
  assert run("").failure == {"status": 3, "error": "it said nothing"}


def test_the_binary_prints_what_it_would_do(tmp_path, capfd):
  path = tmp_path / "sweep.py"
  path.write_text(
    "CONFIG = 'configs/quickstart.py'\n"
    f"def get_sweep():\n  return {list(_ENTRIES)!r}\n"
  )
  assert len(reading.sweep(str(path)).entries) == 3
  command = [sys.executable, "-m", "launch.sweep", f"--sweep={path}"]
  command += [f"--root={tmp_path}/out", "--dry_run"]
  subprocess.run(command, check=True)
  out, err = capfd.readouterr()
  assert len(out.splitlines()) == 4
  assert "12 SAEs of 3 entries, in 3 runs; 1 harvests of 2 sites" in err
  assert not (tmp_path / "out").exists()
