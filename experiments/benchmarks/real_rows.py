"""Real activations in a file, to train on and to measure on, for benchmarks.

They are harvested as the quickstart's, but more of them, or come from the store
whose folder the environment variable BENCHMARK_STORE names.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from gemmascope_jax.data.streams.order import Shuffle

BATCH, STEPS = 1024, 300
_HELD_OUT = 16  # batches


class Rows:
  """The rows of a file as batches in order, for `training.train`."""

  shuffle = Shuffle()  # written once in this order
  site, model, fingerprint, waits_for = "res.5", "demo", "benchmark", "disk"
  provenance = {"weights_hash": "benchmark"}

  def __init__(self, path, policy):
    self._x = np.load(path, mmap_mode="r")
    self.batch_size, self.policy = BATCH, policy
    self.rows, self.width = self._x.shape
    trained = self._x[: STEPS * BATCH]
    self.mean = trained.mean(axis=0, dtype=np.float64)
    self.mean_square_norm = float(
      np.square(trained, dtype=np.float64).sum(axis=1).mean()
    )

  def batch(self, step, part=slice(None)):
    """float32 [B, D], of a step."""
    return np.array(self._x[step * BATCH : (step + 1) * BATCH][part])

  def iterate(self, start=0, stop=None, *, part=slice(None)):
    """(step, batch) from `start` up to `stop`."""
    for step in range(start, stop):
      yield step, self.batch(step, part)

  def held_out(self):
    """float32 [N, D], rows that no step has."""
    return np.array(self._x[STEPS * BATCH :])


def write_rows(path: pathlib.Path) -> None:
  """The first rows of the shuffled stream, as one file; each row once.

  Raises:
    ValueError: a store with fewer rows, so that held-out ones would be rows of
      a second epoch.
  """
  from configs import quickstart
  from gemmascope_jax import experiment
  from gemmascope_jax.experiment import activations

  config = quickstart.get_config()
  config.workdir = "runs/benchmark"
  steps = STEPS + _HELD_OUT
  config.harvest.rows = steps * BATCH
  if os.environ.get("BENCHMARK_STORE"):
    config.data.source = os.environ["BENCHMARK_STORE"]
  else:
    experiment.harvest(config)
  stream = activations.open_stream(config)
  if stream.rows < steps * BATCH:
    raise ValueError(
      f"BENCHMARK_STORE holds {stream.rows:,} rows; expected at least"
      f" {steps * BATCH:,}, so that rows can be held out"
    )
  out = np.lib.format.open_memmap(
    path, "w+", np.float32, (steps * BATCH, stream.width)
  )
  for step, batch in stream.iterate(0, steps):
    out[step * BATCH : (step + 1) * BATCH] = batch
  out.flush()


def measured(params: dict[str, np.ndarray], x: np.ndarray, mean) -> tuple:
  """(L0, FVU, share of latents that never fired) of a JumpReLU SAE.

  Args:
    params: W_enc [D, M], b_enc, W_dec [M, D], b_dec, threshold; raw space.
      "k" instead of a threshold: the k largest of a row.
    x: float32 [N, D].
    mean: float64 [D], of the rows trained on.
  """
  squared = count = 0.0
  fired = np.zeros(params["b_enc"].shape, bool)
  for rows in np.array_split(x, len(x) // BATCH):
    pre = rows @ params["W_enc"] + params["b_enc"]
    if "k" in params:
      kept = np.argpartition(pre, -params["k"], axis=1)[:, -params["k"] :]
      active = np.zeros(pre.shape, bool)
      np.put_along_axis(active, kept, True, axis=1)
      active &= pre > 0
    else:
      active = (pre > params["threshold"]) & (pre > 0)
    out = np.where(active, pre, 0) @ params["W_dec"] + params["b_dec"]
    squared += np.square(out - rows, dtype=np.float64).sum()
    count += active.sum()
    fired |= active.any(axis=0)
  variance = np.square(x - mean, dtype=np.float64).sum()
  return count / len(x), squared / variance, 1 - fired.mean()


def measured_member(folder: pathlib.Path, stream: Rows) -> tuple:
  """`measured` of an SAE that `training.train` left in a folder."""
  from gemmascope_jax import sae

  found = sae.load(folder)
  params = {
    "W_enc": found.params.w_enc,
    "b_enc": found.params.b_enc,
    "W_dec": found.params.w_dec,
    "b_dec": found.params.b_dec,
    "threshold": found.params.threshold,
  }
  if found.config.k:
    params["k"] = found.config.k
  return measured(params, stream.held_out(), stream.mean)
