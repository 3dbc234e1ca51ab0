"""What a line of a run's metrics says."""

from __future__ import annotations

import numpy as np

from gemmascope_jax import throughput
from gemmascope_jax.data.streams import feed

# A latent that has not fired for this many rows counts as dead in the logs.
DEAD_AFTER_ROWS = 200_000


def timing(clock: throughput.Meter, batches: feed.Feed) -> dict:
  """Rates since the last line, and which stage is the limit."""
  step, fed = clock.read(), batches.meter.read()
  shares = feed.limit(fed["waited"], step["waited"].get("batch", 0.0))
  return {
    "rows_per_second": step["rows_per_second"],
    "bytes_per_second": step["bytes_per_second"],
    "time": shares,
    "limit": max(shares, key=shares.get),
  }


def line(stream, scale, recipe, step, state, values) -> dict[str, float]:
  """One member's metrics at one step."""
  found = {key: float(value) for key, value in values.items()}
  variance = stream.mean_square_norm - float(np.square(stream.mean).sum())
  return {
    "step": step,
    "rows": (step + 1) * recipe.batch_size,
    **found,
    "fvu": found["squared_error"] * scale**2 / variance,
    "dead_fraction": dead_fraction(recipe, state),
  }


def dead_fraction(recipe, state) -> float:
  """Share of latents that have not fired lately, or never."""
  steps = int(state.step)
  rows = steps * recipe.batch_size
  fired = np.asarray(state.last_fired, np.int64)  # rows pass 2^31
  silent = np.where(fired < 0, steps, steps - 1 - fired) * recipe.batch_size
  return float((silent >= min(DEAD_AFTER_ROWS, max(rows, 1))).mean())


def postfix(found, times) -> str:
  """The end of the progress line: every member's L0, and the limit."""
  l0 = " ".join(f"{float(values['l0']):.0f}" for values in found)
  limit = times["limit"]
  return f"L0 {l0}, limit: {limit} ({times['time'][limit]:.0%})"
