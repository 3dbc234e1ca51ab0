"""What a line of a run's metrics says of one member.

A line is made in two parts, so that the device never waits for it: `look`
reduces the member's state to a few numbers there, and `line` writes them out
once they have arrived, a step or two later.

The keys of a line:

  name, step, rows            the member, the last step made, rows seen by then
  loss, squared_error,        of that step's batch; `penalty` is the rest of the
  penalty, l0, fvu,           loss. FVU is over the variance of all rows
  kernel_share,               pre-activations inside the kernel window
  sparsity_coefficient,       after warm-up
  learning_rate, gradient_norm
  l0_mean                     of all rows since the last line
  dead_fraction               latents that have not fired for 200,000 rows, or
                              for half of the rows so far if that is less
  dead_fraction_recipe        ... for the recipe's dead_after_rows
  dense_fraction              latents that fire on more than 10% of the rows
                              since the last line
  firing_rates                histogram of the latents' rates on those rows:
                              `counts` of bins equal in log10 of the rate,
                              between 10^`from` and 10^`to`; `never`
  threshold_mean, _min, _max  in training units
  threshold_drift             mean |threshold - its start| over the larger mean
  decoder_norm_error          the largest | ||w|| - 1 | of a decoder row
  encoder_norm                mean norm of an encoder row
  dense_step_share            sparse steps since the last line that fell back
  warnings                    what is wrong, in words; absent if nothing is

and, the same for all members of a step, those of `timing`.

Letters: M latents.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemmascope_jax import throughput
from gemmascope_jax.data.streams import feed
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import jumprelu
from gemmascope_jax.sae.train_step import TrainState

# A latent that has not fired for this many rows counts as dead in the logs of
# runs that are twice as long.
DEAD_AFTER_ROWS = 200_000
_DENSE_RATE = 0.1
_RATES = (-6.0, 0.0)  # log10 of the histogram's ends
_BINS = 24
_NEARLY_ALL = 0.9
_NO_DRIFT = 1e-6

CHECKPOINT = "checkpoint"

# {"step": the last line's, int32; "threshold": [M], thresholds before the first
# step, of families that train them}
Watch = dict[str, jax.Array]


def watch(state: TrainState) -> Watch:
  """What lines need besides the state; made before the first step."""
  found = {"step": jnp.copy(state.step)}
  threshold = _thresholds(state)
  if threshold is not None:
    found["threshold"] = jnp.copy(threshold)  # the step overwrites its own
  return found


def look(
  recipe: Recipe, state: TrainState, since: Watch, mesh: Mesh | None
) -> dict[str, jax.Array]:
  """Starts computing what a line says of the state; waits for nothing."""
  return _look_fn(recipe.batch_size, recipe.dead_after_rows, mesh)(state, since)


def again(state: TrainState, since: Watch) -> tuple[TrainState, Watch]:
  """The state and the watch from which the next line counts."""
  zero = lambda x: jnp.zeros_like(x, device=x.sharding)
  state = state.replace(
    fired=zero(state.fired), dense_steps=zero(state.dense_steps)
  )
  return state, since | {"step": jnp.copy(state.step)}


def dead_fraction(recipe: Recipe, state: TrainState) -> float:
  """Share of latents silent for the last `dead_window` rows."""
  return float(_dead_lately(state, recipe.batch_size))


def dead_window(recipe: Recipe, state: TrainState) -> int:
  """Rows for which a latent must have been silent to count as dead in logs."""
  size = recipe.batch_size
  limit = math.ceil(DEAD_AFTER_ROWS / size)
  return min(limit, max(1, -(-int(state.step) // 2))) * size


def line(
  recipe: Recipe, name: str, fvu_of: float, values: dict, seen: dict
) -> dict[str, Any]:
  """One member's metrics at one step; see the module.

  Args:
    recipe: the member's.
    name: the member's.
    fvu_of: what a squared error is multiplied with to give FVU.
    values: of the step, as it returned them, fetched.
    seen: of `look` after it, fetched.
  """
  values = {key: float(value) for key, value in values.items()}
  numbers = {
    key: float(value) for key, value in seen.items() if np.ndim(value) == 0
  }
  steps = int(seen["steps"])
  del numbers["steps"], numbers["never"]
  found = {
    "name": name,
    "step": steps - 1,
    "rows": steps * recipe.batch_size,
    **values,
    "penalty": values["loss"] - values["squared_error"],
    "fvu": values["squared_error"] * fvu_of,
    **numbers,
    "firing_rates": {
      "from": _RATES[0],
      "to": _RATES[1],
      "counts": [int(count) for count in seen["counts"]],
      "never": int(seen["never"]),
    },
  }
  wrong = warnings(found)
  return found | ({"warnings": wrong} if wrong else {})


def warnings(found: dict[str, Any]) -> list[str]:
  """What is wrong with a member, by the numbers of its line."""
  wrong = []
  if found.get("sparsity_coefficient", 0) > 0 and "kernel_share" in found:
    if found["kernel_share"] == 0:
      wrong.append(
        "lambda does nothing: no pre-activation is inside the kernel window."
        " Raise recipe.bandwidth, or set recipe.threshold_init_l0"
      )
    elif found["threshold_drift"] < _NO_DRIFT:
      wrong.append(
        "lambda does nothing: thresholds have not moved since the start. Raise"
        " recipe.learning_rate or recipe.bias_learning_rate_scale"
      )
  if found["dead_fraction"] > _NEARLY_ALL:
    wrong.append(
      f"{found['dead_fraction']:.0%} of the latents are dead. Lower lambda or"
      " the learning rate, or check the data"
    )
  return wrong


def timing(
  clock: throughput.Meter,
  batches: feed.Feed,
  batch_size: int,
  flops: float,
  peak: float,
) -> dict[str, Any]:
  """Rates since the last line, and which stage is the limit.

  Args:
    clock: of the loop; has waited for "batch" and `CHECKPOINT`.
    batches: the feed.
    batch_size: rows in a batch.
    flops: of the steps since the last line, all members'.
    peak: operations a second that the devices reach in matrix products.

  Returns:
    rows_per_second (tokens, each row being one), bytes_per_second,
    seconds_per_step, gflops_per_second, utilisation (the share of the peak),
    "time", shares of the time by what was waited for, and "limit", the largest.
  """
  step, fed = clock.read(), batches.meter.read()
  shares = feed.limit(fed["waited"], step["waited"].get("batch", 0.0))
  shares[CHECKPOINT] = step["waited"].get(CHECKPOINT, 0.0)
  shares["step"] = round(shares["step"] - shares[CHECKPOINT], 4)
  seconds = step["rows"] / step["rows_per_second"]
  return {
    "rows_per_second": step["rows_per_second"],
    "bytes_per_second": step["bytes_per_second"],
    "seconds_per_step": round(batch_size / step["rows_per_second"], 6),
    "gflops_per_second": round(flops / seconds / 1e9, 3),
    "utilisation": round(flops / seconds / peak, 4),
    "time": shares,
    "limit": max(shares, key=shares.get),
  }


def postfix(lines: dict[str, dict[str, Any]]) -> str:
  """The end of the progress line: every member's L0 and FVU, and the limit."""
  if not lines:
    return ""
  *_, last = lines.values()
  l0 = " ".join(f"{line['l0']:.0f}" for line in lines.values())
  fvu = " ".join(f"{line['fvu']:.2g}" for line in lines.values())
  limit = last["limit"]
  return f"L0 {l0}, FVU {fvu}, limit: {limit} ({last['time'][limit]:.0%})"


@functools.cache
def _look_fn(batch_size: int, dead_after_rows: int, mesh: Mesh | None):
  everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  look = functools.partial(_look, batch_size, dead_after_rows)
  return jax.jit(look, out_shardings=everywhere)


def _look(batch_size: int, dead_after_rows: int, state: TrainState, since):
  steps = state.step - since["step"]
  rows = (jnp.maximum(steps, 1) * batch_size).astype(jnp.float32)
  rate = state.fired / rows
  low, high = _RATES
  place = (jnp.log10(rate) - low) / (high - low) * _BINS
  bins = jnp.clip(jnp.floor(place), 0, _BINS - 1).astype(jnp.int32)
  fired = state.fired > 0
  norms = lambda name: jnp.linalg.norm(state.params[name], axis=1)
  found = {
    "steps": state.step,
    "l0_mean": rate.sum(),
    "dead_fraction": _dead_lately(state, batch_size),
    "dead_fraction_recipe": _dead_for(state, batch_size, dead_after_rows),
    "dense_fraction": (rate > _DENSE_RATE).mean(),
    "counts": jnp.zeros(_BINS, jnp.int32).at[bins].add(fired),
    "never": (~fired).sum(),
    "decoder_norm_error": jnp.abs(norms("w_dec") - 1).max(),
    "encoder_norm": norms("w_enc").mean(),
    "dense_step_share": state.dense_steps / jnp.maximum(steps, 1),
  }
  threshold = _thresholds(state)
  if threshold is None:
    return found
  start = since["threshold"]
  largest = jnp.maximum(threshold.mean(), start.mean())
  return found | {
    "threshold_min": threshold.min(),
    "threshold_max": threshold.max(),
    "threshold_drift": jnp.abs(threshold - start).mean()
    / jnp.maximum(largest, jnp.finfo(largest.dtype).tiny),
  }


def _dead_lately(state: TrainState, batch_size: int) -> jax.Array:
  """Share of latents silent for `DEAD_AFTER_ROWS`, or half of the rows so far.

  Early in a run nearly all latents have fired once: to count only those that
  never did would call none dead.
  """
  return _dead_fraction(
    state, batch_size, DEAD_AFTER_ROWS, (state.step + 1) // 2
  )


def _dead_for(state: TrainState, batch_size: int, rows: int) -> jax.Array:
  """Share of latents silent for so many rows, or since the start."""
  return _dead_fraction(state, batch_size, rows, state.step)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _dead_fraction(
  state: TrainState, batch_size: int, rows: int, most: jax.Array
) -> jax.Array:
  """Share of latents silent for so many rows, at most so many steps."""
  # In steps, because rows pass 2^31.
  silent = jnp.where(
    state.last_fired < 0, state.step, state.step - 1 - state.last_fired
  )
  limit = min(math.ceil(rows / batch_size), 2**31 - 1)
  return (silent >= jnp.minimum(limit, jnp.maximum(most, 1))).mean()


def _thresholds(state: TrainState) -> jax.Array | None:
  """[M], of families that train them."""
  trained = {"threshold", "log_threshold"} & set(state.params)
  return jumprelu.thresholds(state.params) if trained else None
