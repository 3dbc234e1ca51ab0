"""Training the last blocks of a model on its turns of conversations.

Embeddings, norms outside the blocks and the blocks below stay as they are: the
gradient stops there, which saves most of the time, and the delta is small.
The batch of a step is a pure function of the seed and the step, so a run that
was killed goes on from its checkpoint to the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from gemmascope_jax import checkpoints, gemma
from gemmascope_jax.data.tokens.conversations import Conversations
from gemmascope_jax.finetune import scoring
from gemmascope_jax.training import preemption

_KEPT = 2  # checkpoints


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to train.

  Attributes:
    steps: updates.
    batch: conversations in each.
    layers: the last so many blocks are trained; None: all.
    learning_rate: at its peak, of AdamW.
    warmup_steps: it rises linearly over these, then falls to 0 along a half
      cosine.
    weight_decay: of AdamW; 0: off.
    adam_b1: decay of the first moment.
    adam_b2: decay of the second moment.
    clip_norm: the gradient's norm is cut down to this.
    seed: of the order of conversations.
  """

  steps: int = 100
  batch: int = 4
  layers: int | None = None
  learning_rate: float = 1e-4
  warmup_steps: int = 10
  weight_decay: float = 0.0
  adam_b1: float = 0.9
  adam_b2: float = 0.99
  clip_norm: float = 1.0
  seed: int = 0

  def __post_init__(self):
    for name in ("steps", "batch"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} is {getattr(self, name)}; expected at least 1"
        )
    if self.layers is not None and self.layers < 1:
      raise ValueError(
        f"layers is {self.layers}; expected at least 1, or None for all"
      )
    if not 0 <= self.warmup_steps <= self.steps:
      raise ValueError(
        f"warmup_steps is {self.warmup_steps}; expected 0 to steps"
        f" ({self.steps})"
      )
    for name in ("learning_rate", "clip_norm"):
      if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
        raise ValueError(
          f"{name} is {getattr(self, name)}; expected a positive number"
        )
    for name in ("adam_b1", "adam_b2"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f"{name} is {getattr(self, name)}; expected 0 up to, not including, 1"
        )
    if self.weight_decay < 0:
      raise ValueError(
        f"weight_decay is {self.weight_decay}; expected 0 or more"
      )

  def trained(self, config: gemma.GemmaConfig) -> list[str]:
    """The names of the blocks that are trained."""
    total = config.num_layers
    if self.layers is not None and self.layers > total:
      raise ValueError(
        f"layers is {self.layers}: {config.name} has {total} layers"
      )
    first = 0 if self.layers is None else total - self.layers
    return [f"layer_{layer}" for layer in range(first, total)]

  def optimizer(self) -> optax.GradientTransformation:
    """AdamW after clipping, with the schedule."""
    rate = optax.warmup_cosine_decay_schedule(
      init_value=0.0 if self.warmup_steps else self.learning_rate,
      peak_value=self.learning_rate,
      warmup_steps=self.warmup_steps,
      # One more, so that neither the first nor the last update is nothing.
      decay_steps=self.steps + 1,
    )
    return optax.chain(
      optax.clip_by_global_norm(self.clip_norm),
      optax.adamw(
        lambda count: rate(count + 1),
        b1=self.adam_b1,
        b2=self.adam_b2,
        weight_decay=self.weight_decay,
      ),
    )


def tune(
  lm: gemma.Gemma,
  conversations: Conversations,
  recipe: Recipe,
  folder: str | os.PathLike,
  *,
  checkpoint_minutes: float = 5.0,
  progress: bool = True,
) -> dict[str, Any]:
  """Trains; goes on from the last checkpoint in `folder`.

  The loss of a step is the mean cross-entropy of its tokens in the model's
  turns, the ends of those turns included.

  Args:
    lm: the base model, all its layers in float32.
    conversations: to train on, over and over if there are few, each time in
      another order.
    recipe: see `Recipe`.
    folder: of the checkpoints.
    checkpoint_minutes: so often, and when asked to end.
    progress: show a bar with the loss and the time that is left.

  Returns:
    {"layer_9": ...}: the blocks that were trained.

  Raises:
    ValueError: the model is not in float32 or lacks layers.
    FloatingPointError: the loss is not finite.
    PreemptedError: the process got SIGTERM or Ctrl-C; everything is saved.
    OutOfDiskError: there is no room for a checkpoint.
  """
  names = recipe.trained(lm.config)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(lm.params)}
  if dtypes != {jnp.dtype(jnp.float32)}:
    raise ValueError(
      f"{lm.label} is in {', '.join(map(str, dtypes))}: fine-tuning needs"
      " float32, as gs.gemma.load gives it by default"
    )
  missing = [name for name in names if name not in lm.params]
  if missing:
    raise ValueError(
      f"{lm.label}: {', '.join(missing)} missing; load all layers"
    )
  optimizer = recipe.optimizer()
  frozen = {k: v for k, v in lm.params.items() if k not in names}
  # Copies, since each step gives its arguments' memory to its results.
  blocks = {name: lm.params[name] for name in names}
  blocks = jax.tree.map(lambda x: jnp.array(x, copy=True), blocks)
  state = blocks, jax.jit(optimizer.init)(blocks)
  positions = scoring.largest(conversations, recipe.batch)
  with (
    checkpoints.Run(folder, keep=_KEPT) as saved,
    preemption.notice() as asked,
    tqdm.tqdm(
      total=recipe.steps, desc="fine-tune", disable=not progress
    ) as bar,
  ):
    first = saved.latest or 0
    if first:
      state = saved.restore(first, state)
      bar.update(first)
    due = time.monotonic() + 60 * checkpoint_minutes
    for step in range(first, recipe.steps):
      chosen = order(len(conversations.tokens), recipe, step)
      given = scoring.batch(conversations, chosen, positions)
      state, loss = _step(lm.config, recipe, frozen, state, given)
      _require_finite(float(loss), step)
      bar.set_postfix_str(f"loss {float(loss):.3f}", refresh=False)
      bar.update()
      number = asked(step)
      if number or time.monotonic() > due:
        saved.save(step + 1, state)
        due = time.monotonic() + 60 * checkpoint_minutes
      if number:
        raise preemption.PreemptedError(
          f"step {step + 1} of {recipe.steps} is saved in {folder}: run the same"
          " command again to go on",
          number,
        )
    return state[0]


def order(count: int, recipe: Recipe, step: int) -> np.ndarray:
  """Which of `count` conversations a step sees: int [batch].

  Each is seen once before any is seen twice.
  """
  places = step * recipe.batch + np.arange(recipe.batch)
  found = np.empty(recipe.batch, np.int64)
  for epoch in np.unique(places // count):
    here = places // count == epoch
    shuffled = np.random.default_rng((recipe.seed, epoch)).permutation(count)
    found[here] = shuffled[places[here] % count]
  return found


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _step(config, recipe, frozen, state, given):
  """One update: (state, loss)."""
  blocks, memory = state

  def mean_loss(blocks):
    found = scoring.losses(config, frozen | blocks, given)
    return (found * given.weights).sum() / given.weights.sum()

  loss, gradient = jax.value_and_grad(mean_loss)(blocks)
  updates, memory = recipe.optimizer().update(gradient, memory, blocks)
  return (optax.apply_updates(blocks, updates), memory), loss


def _require_finite(loss: float, step: int) -> None:
  if not math.isfinite(loss):
    raise FloatingPointError(
      f"the loss of step {step + 1} is {loss}: lower recipe.learning_rate, and"
      " start in another folder"
    )
