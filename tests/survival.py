"""Kills harvest, servers and training at random moments; compares the bytes.

    python -m tests.survival --kills=20 [--seed=0] [--folder=FOLDER]

On a tiny random Gemma. One run of harvest, serve and train is left alone. Then
the same commands run again elsewhere, are killed with SIGKILL at random
moments and started again, `kills` times for harvest and as often for server and
trainer together. Every file of the store and of the SAEs has to be the same,
so don't commit meanwhile: files name the code's version.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests.digests import digests

_ROOT = pathlib.Path(__file__).parent.parent
_SERVERS = 2
_PATIENCE_S = 240


def prepare(folder: pathlib.Path) -> dict[str, str]:
  """Writes a model and a text; returns the settings of a run."""
  from tests.gemma import tiny_files

  model = folder / "model"
  model.mkdir(parents=True)
  tiny_files.write_tokenizer(model)
  tensors = tiny_files.hf_tensors(tiny_files.random_params())
  tiny_files.write_hf(model, tensors)
  rng = np.random.default_rng(0)
  lines = [
    " ".join(f"w{i}" for i in rng.zipf(1.3, 40) % 300 + 4) for _ in range(6000)
  ]
  text = folder / "text.jsonl"
  text.write_text("".join(json.dumps({"text": x}) + "\n" for x in lines))
  return {
    "lm.source": str(model),
    "data.sources": f'("file:{text}",)',
    "data.window": "16",
    "harvest.sites": '("res.1","mlp.0")',
    "harvest.rows": "64000",
    "harvest.rows_per_shard": "2000",
    "train.site": "res.1",
    "train.tokens": "19200",
    "train.checkpoint_every": "20",
    "train.log_every": "50",
    "train.bucket_rows": "4096",
    "train.sparsity_coefficients": "(1e-3,1e-1)",
    "recipe.width": "96",
    "recipe.batch_size": "64",
    "recipe.threshold_init_l0": "12.0",
    "recipe.bandwidth": "0.1",
  }


class Run:
  """The processes of one run; a killed one is started with the same command."""

  def __init__(self, workdir: pathlib.Path, settings: dict[str, str]):
    self._workdir, self._settings = workdir, settings
    self._ports = [_free_port() for _ in range(_SERVERS)]
    workdir.mkdir(parents=True)

  def start(self, name: str) -> subprocess.Popen:
    """Starts "harvest", "train" or "serve0", "serve1"."""
    if name.startswith("serve"):
      number = int(name.removeprefix("serve"))
      flags = [
        f"--store={self.store()}",
        f"--port={self._ports[number]}",
        f"--part={number}",
        f"--parts={_SERVERS}",
      ]
      module = "serve"
    else:
      module = name
      servers = ",".join(f"grpc://127.0.0.1:{port}" for port in self._ports)
      settings = self._settings | {"workdir": str(self._workdir)}
      if name == "train":
        settings["data.source"] = servers
      flags = ["--config=configs/quickstart.py", "--config.progress=False"]
      flags += [f"--config.{key}={value}" for key, value in settings.items()]
    log = open(self._workdir / f"{name}.log", "ab")
    with log:
      return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *flags],
        cwd=_ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=log,
        stderr=subprocess.STDOUT,
      )

  def store(self) -> pathlib.Path:
    """The finished store."""
    (manifest,) = (self._workdir / "store").glob("*/manifest.json")
    return manifest.parent

  def finish(self, name: str) -> float:
    """Runs a stage to its end; returns its seconds."""
    start = time.monotonic()
    process = self.start(name)
    if process.wait(timeout=_PATIENCE_S):
      log = (self._workdir / f"{name}.log").read_text()
      raise RuntimeError(f"{name} failed:\n{log[-3000:]}")
    return time.monotonic() - start

  @contextlib.contextmanager
  def servers(self):
    """The servers, ended on the way out; yields {name: process}."""
    names = [f"serve{number}" for number in range(_SERVERS)]
    processes = {name: self.start(name) for name in names}
    try:
      yield processes
    finally:
      for process in processes.values():
        process.kill()
        process.wait()

  def hashes(self) -> dict[str, str]:
    """SHA-256 of everything that must not depend on kills."""
    return {
      path: digest
      for folder in (self.store(), "train/saes", "train/initial")
      for path, digest in digests(self._workdir, folder).items()
    }


def _free_port() -> int:
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def _kill(process: subprocess.Popen) -> bool:
  """Kills a process; whether it was still alive."""
  alive = process.poll() is None
  process.kill()
  process.wait()
  return alive


def harvest_with_kills(run: Run, kills: int, seconds: float, rng) -> int:
  """Kills at most so often, until it is done; returns how often it was hit."""
  hits = 0
  while hits < kills:
    process = run.start("harvest")
    time.sleep(rng.uniform(0.2, 1.0) * seconds)
    if not _kill(process):
      break  # it had ended by itself
    hits += 1
  run.finish("harvest")
  return hits


def train_with_kills(run: Run, kills: int, seconds: float, rng) -> int:
  """Kills the trainer, a server, or all of them, until training is done."""
  hits = 0
  with run.servers() as servers:
    trainer = run.start("train")
    while hits < kills:
      time.sleep(rng.uniform(0.2, 1.0) * seconds)
      if trainer.poll() is not None:
        break
      victims = rng.choice(
        [["train"], *([name] for name in servers), ["train", *servers]]
      )
      for name in victims:
        if name == "train":
          _kill(trainer)
          trainer = run.start("train")
        else:
          _kill(servers[name])
          servers[name] = run.start(name)
      hits += 1
    trainer.wait(timeout=_PATIENCE_S)
    run.finish("train")
  return hits


def survive(folder: pathlib.Path, kills: int, seed: int = 0) -> None:
  """Compares runs that were killed with one that was not.

  A run that is done before it was killed often enough is compared, and another
  one is begun.

  Raises:
    AssertionError: a file differs, or is missing.
  """
  rng = random.Random(seed)
  settings = prepare(folder)
  alone = Run(folder / "alone", settings)
  harvesting = alone.finish("harvest")
  with alone.servers():
    training = alone.finish("train")
  print(f"alone: harvest {harvesting:.1f} s, train {training:.1f} s")
  expected = alone.hashes()
  harvest_hits = train_hits = 0
  for number in itertools.count():
    killed = Run(folder / f"killed{number}", settings)
    left = kills - harvest_hits
    harvest_hits += harvest_with_kills(killed, left, harvesting, rng)
    left = kills - train_hits
    train_hits += train_with_kills(killed, left, training, rng)
    _require_same(expected, killed.hashes())
    print(
      f"run {number}: {len(expected)} files, all the same bytes; until now"
      f" {harvest_hits} kills of harvest, {train_hits} of servers and training",
      flush=True,
    )
    if min(harvest_hits, train_hits) >= kills:
      return


def _require_same(expected: dict[str, str], found: dict[str, str]) -> None:
  assert sorted(expected) == sorted(found), set(expected) ^ set(found)
  differing = [name for name in expected if expected[name] != found[name]]
  assert not differing, f"other bytes: {differing}"


def main() -> None:
  """Parses the flags and runs."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path)
  flags = parser.parse_args()
  if flags.folder:
    survive(flags.folder, flags.kills, flags.seed)
  else:
    with tempfile.TemporaryDirectory() as folder:
      survive(pathlib.Path(folder), flags.kills, flags.seed)


if __name__ == "__main__":
  main()
