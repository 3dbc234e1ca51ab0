"""Kills training at random steps; compares bytes and logs.

    python -m tests.training.kill_training --kills=20 [--seed=0]

On made-up activations. A run is left alone. The same run elsewhere is killed at
random steps, mostly with SIGKILL and sometimes asked to end with SIGTERM, and
started again, each time with some of its members in some order. In the end all
are asked for; every SAE has to have the same bytes, and the log, but for its
timings, the same lines. A run that ends before it was killed often enough is
compared, and another one is begun.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from tests.digests import digests

_ROOT = pathlib.Path(__file__).parent.parent.parent
_PATIENCE_S = 240
_STEPS = 60
_PAUSE_S = 0.02
_MEMBERS = 3
_TIMINGS = (
  "rows_per_second",
  "bytes_per_second",
  "seconds_per_step",
  "gflops_per_second",
  "utilisation",
  "time",
  "limit",
)


def work(folder: str, chosen: list[int]) -> None:
  """Trains members, by number; says each step on standard output."""
  from gemmascope_jax import training
  from tests import rows_stream
  from tests.training import run_test

  class Stream(rows_stream.RowsStream):
    def iterate(self, start=0, stop=None, *, part=slice(None)):
      for step, batch in super().iterate(start, stop, part=part):
        if stop <= _STEPS:  # not the sample
          time.sleep(_PAUSE_S)
          print(step, flush=True)
        yield step, batch

  dense, sparse = (
    dataclasses.replace(recipe, steps=_STEPS) for recipe in run_test.SWEEP
  )
  members = [
    dense,
    dataclasses.replace(sparse, seed=3, steps=47),
    dataclasses.replace(dense, width=16, step="dense", steps=31),
  ]
  schedule = training.Schedule(
    log_every=4, checkpoint_every=9, checkpoint_minutes=0.02, progress=False
  )
  try:
    training.train(
      Stream(run_test.RECIPE.batch_size),
      [members[number] for number in chosen],
      folder,
      seed=1,
      schedule=schedule,
    )
  except training.PreemptedError:
    sys.exit(128 + signal.SIGTERM)


def _start(folder: pathlib.Path, chosen: list[int]) -> subprocess.Popen:
  numbers = ",".join(map(str, chosen))
  return subprocess.Popen(
    [sys.executable, "-m", __spec__.name, f"--work={folder}", numbers],
    cwd=_ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    text=True,
  )


def _finish(folder: pathlib.Path) -> None:
  process = _start(folder, list(range(_MEMBERS)))
  process.communicate(timeout=_PATIENCE_S)
  if process.returncode:
    raise RuntimeError(f"training in {folder} failed: {process.returncode}")


def _with_kills(folder: pathlib.Path, kills: int, rng: random.Random) -> int:
  """Kills at most so often; returns how often it was hit."""
  hits = 0
  while hits < kills:
    chosen = rng.sample(range(_MEMBERS), rng.randint(1, _MEMBERS))
    process = _start(folder, chosen)
    for _ in range(rng.randint(1, 30)):
      if not process.stdout.readline():
        break
    time.sleep(rng.uniform(0, 2 * _PAUSE_S))
    if process.poll() is None:
      hits += 1
    process.send_signal(rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM]))
    process.communicate(timeout=_PATIENCE_S)
    if process.returncode not in (0, -signal.SIGKILL, 143):
      raise RuntimeError(f"training in {folder} ended: {process.returncode}")
    if process.returncode == 0 and len(chosen) == _MEMBERS:
      break
  _finish(folder)
  return hits


def _left(folder: pathlib.Path) -> dict[str, object]:
  """What must not depend on kills: SAEs, and each member's lines."""
  from gemmascope_jax import metrics, training

  found: dict[str, object] = {
    **digests(folder, "saes", "params.npz"),
    **digests(folder, "initial", "params.npz"),
  }
  for line in metrics.read_jsonl(folder / training.METRICS):
    kept = {k: v for k, v in line.items() if k not in _TIMINGS}
    found.setdefault(line["name"], []).append(kept)
  return found


def survive(folder: pathlib.Path, kills: int, seed: int = 0) -> None:
  """Compares runs that were killed with one that was not.

  Raises:
    AssertionError: an SAE or a line differs, or is missing.
  """
  rng = random.Random(seed)
  _finish(folder / "alone")
  expected = _left(folder / "alone")
  hits = 0
  for number in itertools.count():
    killed = folder / f"killed{number}"
    hits += _with_kills(killed, kills - hits, rng)
    found = _left(killed)
    assert sorted(found) == sorted(expected), set(found) ^ set(expected)
    differ = [name for name in expected if found[name] != expected[name]]
    assert not differ, f"not the same after kills: {differ}"
    print(f"run {number}: the same; {hits} kills until now", flush=True)
    if hits >= kills:
      return


def main() -> None:
  """Parses the flags and runs."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--work", help=argparse.SUPPRESS)
  parser.add_argument("members", nargs="?", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.work:
    work(flags.work, [int(number) for number in flags.members.split(",")])
    return
  with tempfile.TemporaryDirectory() as folder:
    survive(pathlib.Path(folder), flags.kills, flags.seed)


if __name__ == "__main__":
  main()
