"""The steps of a run.

All members read the same batch: one disk read and one host-to-device copy
serve the whole sweep (Gemma Scope 4.3 shares its data servers for the same
reason).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gemmascope_jax import artifacts, metrics, throughput
from gemmascope_jax.data.streams import feed
from gemmascope_jax.sae import sweep, train_step
from gemmascope_jax.training import monitors

METRICS = "metrics.jsonl"


class NonFiniteError(FloatingPointError):
  """The loss became NaN or infinite; the batch was saved."""


def run(stream, recipes, states, scale, start, folder, schedule, saved, mesh):
  """Runs steps start..steps-1, changing the list `states` in place."""
  steps = recipes[0].steps
  knobs = [train_step.Knobs.of(recipe) for recipe in recipes]
  writer = metrics.JsonlWriter(folder / METRICS, first_step=start)
  bar = tqdm.tqdm(
    total=steps,
    initial=start,
    desc=f"train {len(recipes)} SAEs",
    unit="step",
    disable=not schedule.progress or jax.process_index() > 0,
  )
  clock, pending = throughput.Meter(), None
  batches = feed.Feed(stream, mesh)
  arriving = batches.iterate(start, steps)
  try:
    for _ in range(start, steps):
      with clock.waiting("batch"):
        step, batch = next(arriving)
      x = batch / jnp.float32(scale)
      found = []
      for index, recipe in enumerate(recipes):
        states[index], values = sweep.step_fn(recipe, mesh)(
          states[index], x, x, knobs[index]
        )
        found.append(values)
      clock.add(len(batch), batch.nbytes)
      del batch, x
      # The previous step's losses are read only now that this step has been
      # dispatched, so the device is never idle.
      if pending:
        _settle(stream, folder, recipes, *pending)
      pending = (step, found)
      done = step + 1
      if done % schedule.log_every == 0 or done == steps:
        _settle(stream, folder, recipes, *pending)
        timing = monitors.timing(clock, batches)
        for index, recipe in enumerate(recipes):
          line = monitors.line(
            stream, scale, recipe, step, states[index], found[index]
          )
          writer.write({"member": index, "name": recipe.name} | line | timing)
        bar.set_postfix_str(monitors.postfix(found, timing), refresh=False)
      bar.update()
      if done % schedule.checkpoint_every == 0 and done < steps:
        _settle(stream, folder, recipes, *pending)
        saved.save(done, states)
    if pending:
      _settle(stream, folder, recipes, *pending)
  finally:
    arriving.close()
    bar.close()
    writer.close()


def _settle(stream, folder, recipes, step, found) -> None:
  """Reads the losses of a dispatched step; stops if one is not finite."""
  for recipe, values in zip(recipes, found, strict=True):
    loss = float(values["loss"])
    if np.isfinite(loss):
      continue
    path = folder / f"not_finite_step_{step}.npy"
    artifacts.write_npy(path, stream.batch(step))
    raise NonFiniteError(
      f"{recipe.name}: the loss is {loss} at step {step}. The batch that did it"
      f" is saved at {path}; the last checkpoint is untouched. Look at the"
      " batch for NaN or huge rows, or lower the learning rate"
    )
