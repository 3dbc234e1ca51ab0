"""One function for each fault: what is done to two processes, and what came."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import shutil
import signal
from collections.abc import Callable

from launch.drills import rig

_DAY_S = 86_400.0


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What was seen.

  Attributes:
    happened: exit statuses, the time it took, and what was said.
    same_bytes: whether the same command then ended in the bytes of a run that
      nothing happened to.
    passed: `same_bytes`, and no process hung or ended without a word.
  """

  happened: str
  same_bytes: bool
  passed: bool


@dataclasses.dataclass(frozen=True)
class Drill:
  """One fault.

  Attributes:
    name: what is done.
    binary: to which.
    run: takes a work directory that may be changed, and the expected digests.
  """

  name: str
  binary: str
  run: Callable[[pathlib.Path, dict[str, str]], Outcome]


def _signalled(binary, signals, lost, statuses):
  """Sends (signal, process) in the middle; the others have to end in time."""

  def run(workdir, expected):
    with rig.job(binary, workdir) as job:
      job.until(lambda: _in_the_middle(binary, workdir))
      for number, process in signals:
        job.send(number, process)
      codes, took = job.end(without=lost)
      said = job.said()
    left = [code for n, code in enumerate(codes) if n not in lost]
    in_time = took < rig.PEER_TIMEOUT_S + 25  # and JAX's own rounds of 10 s
    told = said != "nothing" and all(code in statuses for code in left)
    happened = f"the rest ended with {_list(left)} in {took:.0f} s: {said}"
    return _and_again(binary, workdir, expected, happened, in_time and told)

  return run


def _in_the_middle(binary, workdir) -> bool:
  if binary == "harvest":
    return bool(list(workdir.glob("store/*/*/0*.npy")))
  return bool(rig.steps(workdir))


def _and_again(binary, workdir, expected, happened, good=True, **keywords):
  """The same command once more, undisturbed, and the bytes it ends in."""
  try:
    rig.finish(binary, workdir, **keywords)
  except rig.Hang as error:
    return Outcome(f"{happened}; then: {error}", False, False)
  wanted = expected
  if binary == "harvest":
    wanted = {k: v for k, v in expected.items() if k.startswith("store/")}
  same = rig.digests(workdir) == wanted
  return Outcome(happened, same, good and same)


def _full_disk(workdir, expected):
  with rig.job("train", workdir, limit_bytes=200 * 1024) as job:
    codes, took = job.end()
    said = job.said()
  good = all(codes) and said != "nothing"
  happened = f"ended with {_list(codes)} in {took:.0f} s: {said}"
  return _and_again("train", workdir, expected, happened, good)


def _read_only_store(workdir, expected):
  paths = [workdir / "store", *(workdir / "store").rglob("*")]
  modes = [path.stat().st_mode for path in paths]
  for path, mode in zip(paths, modes, strict=True):
    path.chmod(mode & ~0o222)
  before = _stamps(workdir / "store")
  try:
    outcome = _and_again("train", workdir, expected, "trained as ever")
    untouched = _stamps(workdir / "store") == before
  finally:
    for path, mode in zip(paths, modes, strict=True):
      path.chmod(mode)
  if untouched:
    return outcome
  return Outcome("files of the store were changed", outcome.same_bytes, False)


def _stamps(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def _truncated_checkpoint(workdir, expected):
  with rig.job("train", workdir) as job:
    job.until(lambda: len(rig.steps(workdir)) > 1)
    job.send(signal.SIGKILL)
    job.end()
  newest = rig.steps(workdir)[-1]
  largest = max(
    (path for path in newest.rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  os.truncate(largest, largest.stat().st_size // 2)
  happened = f"step {newest.name}'s largest file cut in half"
  with rig.job("train", workdir) as job:
    codes, took = job.end()
    said = job.said()
  if not any(codes):
    same = rig.digests(workdir) == expected
    return Outcome(f"{happened}: went on from an older one", same, same)
  happened += f": ended with {_list(codes)} in {took:.0f} s: {said};"
  happened += " with that folder removed"
  shutil.rmtree(newest)
  return _and_again("train", workdir, expected, happened, said != "nothing")


def _skewed_clocks(workdir, expected):
  with rig.job("train", workdir, clocks=(-_DAY_S, _DAY_S)) as job:
    job.until(lambda: bool(rig.steps(workdir)))
    job.send(signal.SIGKILL)
    job.end()
  happened = "killed after a checkpoint, begun again with the clocks exchanged"
  return _and_again(
    "train", workdir, expected, happened, clocks=(_DAY_S, -_DAY_S)
  )


def _random_sigterm(seed):
  step = random.Random(seed).randrange(2, 40)

  def run(workdir, expected):
    metrics = workdir / "train/metrics.jsonl"
    count = lambda: len(metrics.read_bytes().splitlines())
    with rig.job("train", workdir, settings={"train.log_every": "1"}) as job:
      job.until(lambda: metrics.exists() and count() >= step)
      job.send(signal.SIGTERM)
      codes, took = job.end()
      said = job.said()
    happened = (
      f"at step {step}: ended with {_list(codes)} in {took:.0f} s: {said}"
    )
    good = set(codes) == {128 + signal.SIGTERM}
    return _and_again(
      "train",
      workdir,
      expected,
      happened,
      good,
      settings={"train.log_every": "1"},
    )

  return run


def _list(codes) -> str:
  return " and ".join(map(str, codes))


_KILL, _STOP, _TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM
_ABORTED = 128 + signal.SIGABRT
_SHOWN = (1, _ABORTED)  # by our own words, or JAX's end of a lost job


def every(seed: int = 0) -> list[Drill]:
  """All drills.

  Args:
    seed: of the step at which SIGTERM comes.
  """
  return [
    Drill(
      "the second process killed",
      "harvest",
      _signalled("harvest", [(_KILL, 1)], [1], _SHOWN),
    ),
    Drill(
      "the second process stopped (SIGSTOP)",
      "harvest",
      _signalled("harvest", [(_STOP, 1)], [1], _SHOWN),
    ),
    Drill(
      "the second process killed",
      "train",
      _signalled("train", [(_KILL, 1)], [1], _SHOWN),
    ),
    Drill(
      "the second process stopped (SIGSTOP)",
      "train",
      _signalled("train", [(_STOP, 1)], [1], _SHOWN),
    ),
    Drill(
      "the coordinator (first process) killed",
      "train",
      _signalled("train", [(_KILL, 0)], [0], _SHOWN),
    ),
    Drill("SIGTERM to both at a random step", "train", _random_sigterm(seed)),
    Drill("the disk is full", "train", _full_disk),
    Drill("the store is read-only", "train", _read_only_store),
    Drill("a checkpoint is cut short", "train", _truncated_checkpoint),
    Drill(
      "clocks a day slow and a day fast, then exchanged",
      "train",
      _skewed_clocks,
    ),
  ]
