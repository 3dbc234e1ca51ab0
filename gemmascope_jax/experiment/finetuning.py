"""The fine-tune, from its own config: see configs/finetune.py."""

from __future__ import annotations

from typing import Any

from gemmascope_jax import finetune
from gemmascope_jax.data.text import texts
from gemmascope_jax.data.tokens import conversations
from gemmascope_jax.data.tokens.chat import ChatTemplate
from gemmascope_jax.experiment import settings
from gemmascope_jax.experiment.settings import Config


def tune(config: Config) -> dict[str, Any]:
  """Dialogues -> a delta of the base model; see `finetune.run`.

  Raises:
    ValueError: a setting that makes no sense, a text without dialogues, or a
      work directory that holds another fine-tune.
  """
  recipe = finetune.Recipe(**config.recipe.to_dict())
  for section, name, least in (
    ("data", "window", 16),
    ("data", "conversations", 1),
    ("evaluate", "conversations", 2),
  ):
    if config[section][name] < least:
      raise ValueError(
        f"{section}.{name} is {config[section][name]}; expected at least"
        f" {least}"
      )
  if not 0 < config.data.held_out < 1:
    raise ValueError(
      f"data.held_out is {config.data.held_out}; expected a share between 0"
      " and 1"
    )
  lm = settings.load_lm(config)
  recipe.trained(lm.config)  # or its error, before anything is read
  chat = ChatTemplate.of(lm.tokenizer)

  def read(split: str, count: int) -> conversations.Conversations:
    mixed = settings.mixed_documents(config, split)
    return conversations.windows(
      (document.text for document in mixed),
      chat,
      lm.tokenizer,
      config.data.window,
      count,
    )

  return finetune.run(
    lm,
    read("train", config.data.conversations),
    read("held_out", config.evaluate.conversations),
    recipe,
    settings.workdir(config),
    licences={name: texts.licence(name) for name in settings.sources(config)},
    dtype=config.delta_dtype,
    checkpoint_minutes=config.checkpoint_minutes,
    progress=config.progress,
  )
