"""A fine-tune in a folder: scored, trained, kept, and scored again.

run.json            what makes it this run: model, texts, recipe
before.npz          held-out losses of the base model
checkpoints/        while it trains
delta.safetensors   what changed, see `delta`
result.json         the held-out losses before and after
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from gemmascope_jax import artifacts, gemma
from gemmascope_jax.data.lock import write_lock
from gemmascope_jax.data.tokens.conversations import Conversations
from gemmascope_jax.finetune import delta, scoring, tuning

NAME = "our short chat fine-tune"
RUN, BEFORE, RESULT = "run.json", "before.npz", "result.json"


def run(
  lm: gemma.Gemma,
  train: Conversations,
  held_out: Conversations,
  recipe: tuning.Recipe,
  folder: str | os.PathLike,
  *,
  licences: Mapping[str, str],
  dtype: str = "bfloat16",
  checkpoint_minutes: float = 5.0,
  progress: bool = True,
) -> dict[str, Any]:
  """Fine-tunes; the same call goes on after a kill, and does nothing twice.

  Args:
    lm: the base model, all its layers in float32.
    train: conversations to learn from.
    held_out: conversations to judge by, of other documents.
    recipe: see `tuning.Recipe`.
    folder: where everything is written.
    licences: one line for each text.
    dtype: of the delta on disk. What is scored is the model as it is loaded
      from there.
    checkpoint_minutes: see `tuning.tune`.
    progress: show progress bars.

  Returns:
    {"loss_before", "loss_after", "difference": estimates over conversations,
    in nats a token of the model's turns, ...}; also in `result.json`.

  Raises:
    ValueError: the folder holds another run; and what `tuning.tune` refuses.
  """
  folder = pathlib.Path(folder)
  said = {
    "base": lm.label,
    "base_weights_hash": lm.weights_hash,
    "recipe": recipe,
    "train": train.fingerprint,
    "held_out": held_out.fingerprint,
    "licences": dict(licences),
    "dtype": dtype,
  }
  said = json.loads(artifacts.canonical_json(said))
  with write_lock(folder, "writing.lock"):
    _require_run(folder, said)
    if (folder / RESULT).exists():
      return artifacts.read_json(folder / RESULT)
    before = _before(folder / BEFORE, lm, held_out, recipe.batch, progress)
    if not (folder / delta.FILE).exists():
      blocks = tuning.tune(
        lm,
        train,
        recipe,
        folder / "checkpoints",
        checkpoint_minutes=checkpoint_minutes,
        progress=progress,
      )
      about = {"name": NAME, "tokens": _tokens(train, recipe), **said}
      delta.write(folder / delta.FILE, lm, blocks, about, dtype)
      del blocks
    tuned = delta.apply(lm, folder)
    after = scoring.score(
      tuned, held_out, size=recipe.batch, what="after", progress=progress
    )
    result = said | {
      "format": delta.FORMAT,
      "code": artifacts.code_version(),
      "label": tuned.label,
      "weights_hash": tuned.weights_hash,
      "tokens": _tokens(train, recipe),
      "held_out_tokens": int(held_out.counted[:, 1:].sum()),
      "loss_before": before.loss(),
      "loss_after": after.loss(),
      "difference": after.minus(before),
    }
    result = json.loads(artifacts.canonical_json(result))
    artifacts.write_json(folder / RESULT, result)
    # They are several times as large as the delta, and done with.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _require_run(folder: pathlib.Path, said: dict[str, Any]) -> None:
  """Says what this run is, or refuses a folder of another one."""
  if not (folder / RUN).exists():
    artifacts.write_json(folder / RUN, said)
  differs = artifacts.differences(artifacts.read_json(folder / RUN), said)
  if differs:
    raise ValueError(
      f"{folder} holds another fine-tune: {'; '.join(differs)}. Choose another"
      " workdir, or go back to those settings"
    )


def _before(path, lm, held_out, size, progress) -> scoring.Scores:
  """The base model's losses, kept."""
  if path.exists():
    with np.load(path) as found:
      return scoring.Scores(found["total"], found["count"])
  scores = scoring.score(
    lm, held_out, size=size, what="before", progress=progress
  )
  with artifacts.atomic_write(path) as file:
    np.savez(file, total=scores.total, count=scores.count)
  return scores


def _tokens(train: Conversations, recipe: tuning.Recipe) -> dict[str, int]:
  """How many tokens were read, and how many of them were learned."""
  read = (train.tokens != train.pad_id).sum(axis=1)
  learned = train.counted[:, 1:].sum(axis=1)
  found = {"read": 0, "learned": 0, "conversations": len(train.tokens)}
  for step in range(recipe.steps):
    chosen = tuning.order(len(read), recipe, step)
    found["read"] += int(read[chosen].sum())
    found["learned"] += int(learned[chosen].sum())
  return found
