"""Harvest against the same forward passes with nothing written.

The packaged Gemma 3 270M, windows of 256 tokens, batches of 8.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

_WINDOWS, _WINDOW, _BATCH = 96, 256, 8
_ROUNDS = 5
_SITES = (("res.5",), ("res.3", "mlp.4", "att.5", "res.5"))


def measure() -> None:
  """Prints a table of rates and ratios."""
  from gemmascope_jax import gemma
  from gemmascope_jax.data import policy
  from gemmascope_jax.data.stores import forward, harvest
  from gemmascope_jax.data.tokens import packing

  lm = gemma.load("demo", num_layers=6)
  keep = policy.TokenPolicy.of(lm.tokenizer)
  tokens = np.random.default_rng(0).integers(300, 200_000, (_WINDOWS, _WINDOW))
  tokens = tokens.astype(np.int32)
  tokens[:, 0] = lm.tokenizer.bos_id
  documents = np.zeros_like(tokens)
  documents[:, 0] = packing.NO_DOCUMENT
  windows = packing.Windows(tokens, documents, np.zeros(1, np.uint64))
  print(
    "| sites | harvest, rows/s | forward only, rows/s | ratio |\n|---|---|---|---|",
    flush=True,
  )
  for sites in _SITES:
    plan = harvest.plan(lm, windows, sites, keep, batch=_BATCH)
    passes = forward.Forward(lm, plan, tokens)

    def only_forward(passes=passes):
      for first in range(0, _WINDOWS, _BATCH):
        acts = passes.dispatch(first)
        jax.block_until_ready(acts)

    def whole_harvest(sites=sites):
      with tempfile.TemporaryDirectory() as folder:
        harvest.harvest(
          lm,
          windows,
          sites,
          pathlib.Path(folder) / "store",
          keep,
          batch=_BATCH,
          progress=False,
        )

    jobs = (whole_harvest, only_forward)
    seconds = {job: [] for job in jobs}
    for job in jobs:
      job()  # compiles
    for _ in range(_ROUNDS):
      for job in jobs:
        start = time.perf_counter()
        job()
        seconds[job].append(time.perf_counter() - start)
    ratio = statistics.median(
      f / h for h, f in zip(*(seconds[job] for job in jobs), strict=True)
    )
    rates = [plan.rows / statistics.median(seconds[job]) for job in jobs]
    print(
      f"| {', '.join(sites)} | {rates[0]:.0f} | {rates[1]:.0f} | {ratio:.3f} |",
      flush=True,
    )
