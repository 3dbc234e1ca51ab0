"""Metrics as plain JSON lines, whether or not a tracker is installed."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from gemmascope_jax import artifacts


class JsonlWriter:
  """Appends one JSON object a line; survives a kill at any moment.

  A line that was cut off is dropped when the file is opened again, and so are
  lines of steps that the run will make again.

  Args:
    path: the file; its folder is made.
    first_step: lines with "step" at or beyond it are dropped.
  """

  def __init__(self, path: str | os.PathLike, first_step: int = 0):
    self._path = pathlib.Path(path)
    lines = read_jsonl(self._path) if self._path.exists() else []
    kept = [line for line in lines if line["step"] < first_step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    artifacts.write_text(self._path, text)
    self._file = open(self._path, "a", encoding="utf-8")

  def write(self, line: dict[str, Any]) -> None:
    """Appends `line`, which holds "step", and flushes."""
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Every whole line of a JSONL file; a last line cut off is left out.

  Raises:
    ValueError: a line that is not JSON anywhere but at the end.
  """
  lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
  found = []
  for number, line in enumerate(lines, start=1):
    if not line:
      continue
    try:
      found.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number == len(lines):
        break
      raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
  return found
