"""How long an SAE takes in a format on this machine.

For information only: a time is measured once and read from its file afterwards,
so that a result made again is the same to the byte.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import time

import jax
import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.studies.replacements import Replacement

TOKENS = 1_024
_TIMES = 5


def seconds(
  replacement: Replacement, width: int, folder: str | os.PathLike
) -> float:
  """The time to encode and decode 1,024 tokens, the median of five.

  Args:
    replacement: an SAE in a format, on the device.
    width: D, of the activations that it reads.
    folder: where times are kept, by shapes, dtypes, format and device.

  Returns:
    Seconds.
  """
  key = artifacts.fingerprint(
    [
      "seconds",
      str(jax.tree.structure(replacement)),
      [[x.shape, str(x.dtype)] for x in jax.tree.leaves(replacement)],
      [width, device()],
    ]
  )
  path = pathlib.Path(folder) / f"seconds_{key}.json"
  if path.exists():
    try:
      return artifacts.read_json(path)["seconds"]
    except ValueError:
      pass  # measured again: it is a cache
  x = np.random.default_rng(0).normal(size=(TOKENS, width))
  x = jax.device_put(x.astype(np.float32))
  jax.block_until_ready(_run(replacement, x))  # compiled
  times = []
  for _ in range(_TIMES):
    start = time.perf_counter()
    jax.block_until_ready(_run(replacement, x))
    times.append(time.perf_counter() - start)
  found = statistics.median(times)
  artifacts.write_json(path, {"seconds": found, "device": device()})
  return found


def device() -> str:
  """What is measured on."""
  return jax.devices()[0].device_kind


@jax.jit
def _run(replacement, x):
  return replacement.reconstruct(x)
