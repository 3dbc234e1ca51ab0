"""docs/reliability.md's table of drills: made from what was seen, never typed."""

from __future__ import annotations

import pathlib
import re

from launch.drills import faults

BEGIN, END = "<!-- drills: begin -->", "<!-- drills: end -->"


def rows(results: list[tuple[faults.Drill, faults.Outcome]]) -> str:
  """The table in Markdown.

  Args:
    results: drills, in order, with what came.
  """
  lines = [
    "| fault | in | what happened | same bytes after the same command | drill |",
    "| --- | --- | --- | --- | --- |",
  ]
  for drill, outcome in results:
    happened = re.sub(r"\s+", " ", outcome.happened).replace("|", "\\|")
    same = "yes" if outcome.same_bytes else "NO"
    passed = "passed" if outcome.passed else "FAILED"
    lines.append(
      f"| {drill.name} | {drill.binary} | {happened} | {same} | {passed} |"
    )
  return "\n".join(lines)


def write(path: pathlib.Path, text: str) -> None:
  """Puts `text` between the page's two marks.

  Raises:
    ValueError: the page lacks them.
  """
  page = path.read_text(encoding="utf-8")
  if page.count(BEGIN) != 1 or page.count(END) != 1:
    raise ValueError(f"{path}: expected the lines {BEGIN} and {END}, once each")
  before, rest = page.split(BEGIN)
  after = rest.split(END)[1]
  path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
