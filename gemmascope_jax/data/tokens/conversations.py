"""Conversations of several turns in Gemma's markup, and what the model says.

    <bos><start_of_turn>user\\n{text}<end_of_turn>\\n
    <start_of_turn>model\\n{text}<end_of_turn>\\n<start_of_turn>user\\n ...

A packaged dialogue is a document of lines "A: ..." and "B: ...": who speaks
first is the user. What the model is to learn, and is judged by, are its own
turns and where they end.

Letters: S sequences (conversations), T tokens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.tokens.chat import ChatTemplate

USER, MODEL = "user", "model"

_LINE = re.compile(r"([AB]): (.*)", re.DOTALL)


class Turn(NamedTuple):
  """What one of the two says before the other does: role and text."""

  role: str
  text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Conversations:
  """Tokens of conversations, each in a row.

  Attributes:
    tokens: int32 [S, T], BOS first, padded on the right.
    counted: bool [S, T]: tokens of the model's turns, the end of the turn
      included; what is to be predicted there counts.
    pad_id: the padding.
  """

  tokens: np.ndarray
  counted: np.ndarray
  pad_id: int

  @property
  def fingerprint(self) -> str:
    """Hex SHA-256 of the tokens and of what counts."""
    return artifacts.sha256_arrays((self.tokens, self.counted))


def parse(document: str) -> list[Turn]:
  """The turns of a dialogue of lines "A: ..." and "B: ...".

  Lines of the same speaker are one turn, as are those without a speaker and
  the one before; empty ones are left out.

  Args:
    document: the text.

  Returns:
    Turns, "user" and "model" in turn, the first of them "user".

  Raises:
    ValueError: it does not begin with a speaker.
  """
  lines: list[list[str]] = []
  for line in document.split("\n"):
    match = _LINE.fullmatch(line)
    if match:
      lines.append([match[1], match[2]])
    elif lines:
      lines[-1][1] += f"\n{line}"
    else:
      raise ValueError(
        f"no dialogue: it begins with {document[:40]!r}; expected lines that"
        ' begin with "A: " or "B: "'
      )
  turns: list[Turn] = []
  first = None
  for speaker, text in lines:
    text = text.strip()
    if not text:
      continue
    first = first or speaker
    role = USER if speaker == first else MODEL
    if turns and turns[-1].role == role:
      text = f"{turns.pop().text}\n{text}"
    turns.append(Turn(role, text))
  return turns


def encode(
  chat: ChatTemplate, tokenizer: Any, turns: Sequence[Turn]
) -> tuple[list[int], list[bool]]:
  """The ids of a conversation, and which of them the model says.

  Markup in a text is text like any other; see `ChatTemplate.encode`.

  Args:
    chat: the markup.
    tokenizer: the one that it is of.
    turns: of the two in turn, the user's first.

  Returns:
    Ids, BOS first, and as many flags: True in the model's turns, from the first
    token of the text to the end of the turn. After that of the last turn
    nothing follows.

  Raises:
    ValueError: the roles do not alternate.
  """
  roles = [turn.role for turn in turns]
  expected = [(USER, MODEL)[number % 2] for number in range(len(turns))]
  if roles != expected:
    raise ValueError(
      f"a conversation of roles {', '.join(roles)}: expected user and model in"
      " turn, the user first"
    )
  ids, said = [tokenizer.bos_id], [False]
  for number, turn in enumerate(turns):
    opening = chat.prefix if turn.role == USER else chat.model_prefix
    if number:
      opening = (*chat.between, *opening)
    text = [*chat.encode(tokenizer, turn.text), chat.end]
    ids += [*opening, *text]
    said += [False] * len(opening) + [turn.role == MODEL] * len(text)
  return ids, said


def windows(
  documents: Iterable[str],
  chat: ChatTemplate,
  tokenizer: Any,
  tokens: int,
  count: int,
) -> Conversations:
  """The first conversations of some documents, cut after so many tokens.

  Args:
    documents: dialogues, see `parse`. Those in which the model says nothing
      within the window are left out; no more are read than needed.
    chat: the markup.
    tokenizer: the one that it is of.
    tokens: T.
    count: S, at most.

  Raises:
    ValueError: a document is no dialogue, or none has a turn of the model.
  """
  rows, flags = [], []
  for document in documents:
    ids, said = encode(chat, tokenizer, parse(document))
    if any(said[:tokens]):
      rows.append(ids[:tokens])
      flags.append(said[:tokens])
    if len(rows) >= count:
      break
  if not rows:
    raise ValueError(
      f"no conversation in which the model says something within {tokens}"
      " tokens: give other dialogues, or a larger window"
    )
  shape = len(rows), max(map(len, rows))
  pad = tokenizer.pad_id
  found = np.full(shape, pad, np.int32), np.zeros(shape, np.bool_)
  for array, values in zip(found, (rows, flags), strict=True):
    for row, value in enumerate(values):
      array[row, : len(value)] = value
  return Conversations(*found, pad)
