"""Drills: what is written of them. They themselves take ten minutes."""

import pathlib
import subprocess
import sys

import pytest

from launch.drills import faults, rig, table


def test_the_table_is_put_between_the_marks(tmp_path):
  drill = faults.Drill("the disk is full", "train", None)
  outcome = faults.Outcome("ended |\nwith 1", True, True)
  rows = table.rows([(drill, outcome)])
  assert rows.splitlines()[2] == (
    "| the disk is full | train | ended \\| with 1 | yes | passed |"
  )
  page = tmp_path / "page.md"
  page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
  table.write(page, rows)
  assert page.read_text() == (
    f"before\n{table.BEGIN}\n{rows}\n{table.END}\nafter\n"
  )
  failed = faults.Outcome("hangs", False, False)
  assert "| NO | FAILED |" in table.rows([(drill, failed)])


def test_a_page_without_marks_is_refused(tmp_path):
  page = tmp_path / "page.md"
  page.write_text(table.BEGIN)
  with pytest.raises(ValueError, match="page.md: expected the lines"):
    table.write(page, "rows")


def test_every_fault_of_the_page_is_drilled():
  drills = faults.every()
  assert {drill.binary for drill in drills} == {"harvest", "train"}
  page = pathlib.Path("docs/reliability.md").read_text(encoding="utf-8")
  found = page.split(table.BEGIN)[1].split(table.END)[0]
  for drill in drills:
    assert f"| {drill.name} | {drill.binary} |" in found
  assert "FAILED" not in page


def test_what_was_said_is_the_same_on_every_machine(tmp_path):
  job = rig.Job.__new__(rig.Job)
  job._workdir = tmp_path / "run"
  log = tmp_path / "log"
  log.write_text(f"noise\nerror: {tmp_path}/run/x is bad (see it). More\n")
  job.logs = [log]
  assert job.said() == "error: WORKDIR/x is bad"


def test_an_unknown_drill_is_an_error():
  command = [sys.executable, "-m", "launch.drill", "--only=earthquake"]
  found = subprocess.run(command, capture_output=True, text=True)
  assert found.returncode == 1 and "no such drill" in found.stderr
