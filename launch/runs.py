"""Runs: what a launcher starts, each in a work directory of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import re
import shlex
import sys
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.experiment import overrides
from launch import arguments
from launch.sweeps import reading

_DONE = "done.json"
_FAILED = "failed.json"


@dataclasses.dataclass(frozen=True)
class Run:
  """One entry of the queue.

  Attributes:
    folder: work directory and log.
    command: what is started.
  """

  folder: pathlib.Path
  command: tuple[str, ...]

  @property
  def is_done(self) -> bool:
    """Whether it finished, with this very command, by whatever Python."""
    path = self.folder / _DONE
    if not path.exists():
      return False
    return artifacts.read_json(path)["command"][1:] == list(self.command)[1:]

  @property
  def failure(self) -> dict[str, Any] | None:
    """Exit status and error of its last try, if that failed."""
    path = self.folder / _FAILED
    return artifacts.read_json(path) if path.exists() else None

  def has_begun(self) -> None:
    """Forgets how an earlier try ended."""
    (self.folder / _FAILED).unlink(missing_ok=True)

  def has_ended(self, status: int, error: str) -> None:
    """Says on disk how it ended.

    Args:
      status: exit status.
      error: what it said last, if that is not 0.
    """
    if status:
      why = {"status": status, "error": error}
      artifacts.write_json(self.folder / _FAILED, why)
    else:
      artifacts.write_json(self.folder / _DONE, {"command": list(self.command)})


def absolute(root: str) -> str:
  """A root by its one name, since a run is done if its very command has ended."""
  return os.path.abspath(root)


def plan(binary: str, config: str, root: str, settings: list[str]) -> list[Run]:
  """The queue of `--run` settings.

  Args:
    binary: module in experiments/.
    config: file, as `--config` takes it.
    root: folder of all runs.
    settings: of each run, as "key=value key=value"; "": the config as it is.

  Raises:
    FileNotFoundError: no such config.
    ValueError: no such binary; no run, one that is not key=value or sets what
      the config lacks, or the same run twice.
  """
  if not settings:
    raise ValueError("nothing to run: give at least one --run='key=value ...'")
  if importlib.util.find_spec(f"experiments.{binary}") is None:
    raise ValueError(f"--binary={binary}: there is no experiments/{binary}.py")
  base = reading.config(config)
  runs, root = [], absolute(root)
  for setting in settings:
    flag = f"--run={setting!r}"
    try:
      pairs = shlex.split(setting)
    except ValueError as error:
      raise ValueError(f"{flag}: {error}") from error
    arguments.require_settings(flag, pairs, ("workdir",))
    for pair in pairs:
      overrides.require(base, pair.partition("=")[0], flag)
    slug = re.sub(r"[^\w.=-]+", "_", "_".join(pairs))[:80] or "as_it_is"
    digest = hashlib.sha256(shlex.join(pairs).encode()).hexdigest()[:6]
    folder = pathlib.Path(root) / f"{slug}_{digest}"
    command = (
      sys.executable,
      "-m",
      f"experiments.{binary}",
      f"--config={config}",
      f"--config.workdir={folder}",
      *(f"--config.{pair}" for pair in pairs),
    )
    runs.append(Run(folder, command))
  if len({run.folder for run in runs}) < len(runs):
    raise ValueError("the same --run is given twice")
  return runs
