"""Where a run's metrics go: plain JSON lines always, trackers if asked.

A line is a dict with "name", of the member, and "step"; each member's steps
ascend. A run that resumes makes lines again that it had written before it was
killed, so a logger is told from which step on each member's are to come.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from gemmascope_jax import artifacts

# Trackers, and the package that each needs.
TRACKERS = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Logger(Protocol):
  """Takes lines."""

  def write(self, line: dict[str, Any]) -> None:
    """Takes one line."""


def check(trackers: Sequence[str]) -> None:
  """Refuses trackers that are unknown or not installed.

  Raises:
    ValueError: an unknown name.
    ImportError: names the package to install.
  """
  for name in trackers:
    if name not in TRACKERS:
      raise ValueError(
        f"train.loggers names {name!r}; expected some of {', '.join(TRACKERS)}"
      )
    if importlib.util.find_spec(TRACKERS[name]) is None:
      raise ImportError(
        f"train.loggers names {name!r}, but {TRACKERS[name]} is not installed:"
        f" pip install {TRACKERS[name]}, or leave it out (metrics.jsonl is"
        " written in any case)"
      )


@contextlib.contextmanager
def open_loggers(
  path: str | os.PathLike,
  first_steps: Mapping[str, int],
  trackers: Sequence[str] = (),
  about: Mapping[str, Any] | None = None,
) -> Iterator[list[Logger]]:
  """Opens a run's JSONL file, and its trackers beside it.

  Args:
    path: the file.
    first_steps: by member, the step from which on its lines come now.
    trackers: names of `TRACKERS`.
    about: what the run is, for trackers that show it.
  """
  path = pathlib.Path(path)
  with contextlib.ExitStack() as stack:
    opened: list[Logger] = [JsonlWriter(path, first_steps)]
    if "tensorboard" in trackers:
      opened.append(TensorBoard(path.parent / "tensorboard", first_steps))
    if "wandb" in trackers:
      opened.append(WeightsAndBiases(path.parent, about or {}))
    for logger in opened:
      stack.callback(logger.close)
    yield opened


class JsonlWriter:
  """Appends one JSON object a line; survives a kill at any moment.

  A line that was cut off is dropped when the file is opened again, and so are
  lines that the run will make again.

  Args:
    path: the file; its folder is made.
    first_steps: by member, the step from which on lines are dropped; other
      members' stay.
  """

  def __init__(self, path: str | os.PathLike, first_steps: Mapping[str, int]):
    self._path = pathlib.Path(path)
    lines = read_jsonl(self._path) if self._path.exists() else []
    kept = [
      line
      for line in lines
      if line["step"] < first_steps.get(line["name"], line["step"] + 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    artifacts.write_text(self._path, text)
    self._file = open(self._path, "a", encoding="utf-8")

  def write(self, line: dict[str, Any]) -> None:
    """Appends `line` and flushes."""
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class TensorBoard:
  """One TensorBoard run a member, below a folder."""

  def __init__(self, folder: pathlib.Path, first_steps: Mapping[str, int]):
    import tensorboardX

    self._writers = {}
    for name, step in first_steps.items():
      path = folder / name.replace(" ", "_").replace("=", "_")
      if step == 0:  # TensorBoard can't be told to forget from there
        shutil.rmtree(path, ignore_errors=True)
      self._writers[name] = tensorboardX.SummaryWriter(
        str(path), purge_step=step
      )

  def write(self, line: dict[str, Any]) -> None:
    """Writes every number, and the firing rates as a histogram."""
    writer, step = self._writers[line["name"]], line["step"]
    for key, value in numbers(line).items():
      writer.add_scalar(key, value, step)
    rates = line["firing_rates"]
    counts, low, high = rates["counts"], rates["from"], rates["to"]
    ends = [
      low + (high - low) * (i + 1) / len(counts) for i in range(len(counts))
    ]
    writer.add_histogram_raw(
      "log10_firing_rate",
      min=low,
      max=high,
      num=sum(counts),
      sum=sum(c * e for c, e in zip(counts, ends, strict=True)),
      sum_squares=sum(c * e * e for c, e in zip(counts, ends, strict=True)),
      bucket_limits=ends,
      bucket_counts=counts,
      global_step=step,
    )

  def close(self) -> None:
    """Closes the files."""
    for writer in self._writers.values():
      writer.close()


class WeightsAndBiases:
  """One run at Weights & Biases, or of its offline mode, for a run's folder.

  A run that is resumed goes on there; lines that it makes again stand twice.
  """

  def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
    import wandb

    self._run = wandb.init(
      project="gemmascope_jax",
      id=artifacts.fingerprint([str(folder.resolve()), about]),
      resume="allow",
      dir=str(folder),
      config=dict(about),
    )
    self._known: set[str] = set()

  def write(self, line: dict[str, Any]) -> None:
    """Writes every number, under the member's name."""
    name = line["name"]
    if name not in self._known:
      self._known.add(name)
      self._run.define_metric(f"{name}/*", step_metric=f"{name}/step")
    found = numbers(line)
    self._run.log({f"{name}/{key}": value for key, value in found.items()})

  def close(self) -> None:
    """Ends the upload."""
    self._run.finish()


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
  """A line's numbers, those of "time" as "time/step" and so on."""
  found = {}
  for key, value in line.items():
    inner = value if isinstance(value, dict) else {"": value}
    for part, number in inner.items():
      if isinstance(number, (int, float)) and key != "firing_rates":
        found[f"{key}/{part}" if part else key] = number
  return found


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
