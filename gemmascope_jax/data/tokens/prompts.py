"""What users ask: prompts for rollouts of a chat model.

read("mt_bench")                # 80 questions of two turns, a package
read("dialogue")                # first turns of held-out dialogues
read("file:prompts.txt")        # a prompt a line; or .jsonl
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Iterator

from gemmascope_jax.data.text import documents, packaged_texts
from gemmascope_jax.data.tokens import conversations

MT_BENCH, DIALOGUE = "mt_bench", "dialogue"

Prompt = tuple[str, ...]


def read(
  source: str,
  count: int | None = None,
  *,
  folder: str | os.PathLike | None = None,
  held_out: float = documents.HELD_OUT,
) -> list[Prompt]:
  """Distinct prompts of a source, in an order that never changes.

  Args:
    source: one of
      * "mt_bench": MT-bench's questions, two user turns each;
      * "dialogue": what is said first in the held-out packaged dialogues;
      * "file:PATH": of a .txt file, each line that is not empty; of a .jsonl
        file, on each line a string, or an object with "prompt" or "text" (a
        string) or "turns" (several, asked one after the other).
    count: at most so many; None: all.
    folder: where packaged texts are installed, see `packaged_texts.find`.
    held_out: share of the dialogues that are held out.

  Returns:
    The user turns of each prompt: most have one.

  Raises:
    ValueError: an unknown source, a file that holds no prompts, a line that is
      none (says which), or a count below 1.
    FileNotFoundError: the file or the package is missing; how to install it.
  """
  if count is not None and count < 1:
    raise ValueError(f"count is {count}; expected at least 1 prompt")
  if source == MT_BENCH:
    package = packaged_texts.find(MT_BENCH, folder)
    found = packaged_texts.mt_bench_questions(package)
  elif source == DIALOGUE:
    found = _first_turns(folder, held_out)
  elif source.startswith("file:"):
    found = _lines(pathlib.Path(source.removeprefix("file:")).expanduser())
  else:
    raise ValueError(
      f"prompts {source!r}: expected {MT_BENCH}, {DIALOGUE}, or file:PATH"
    )
  chosen = _distinct(found, count)
  if not chosen:
    raise ValueError(f"prompts {source!r}: there are none")
  return chosen


def _distinct(found: Iterable[Prompt], count: int | None) -> list[Prompt]:
  chosen: dict[Prompt, None] = {}
  for prompt in found:
    chosen[prompt] = None
    if len(chosen) == count:
      break
  return list(chosen)


def _first_turns(folder, held_out) -> Iterator[Prompt]:
  mixed = documents.mix(
    [DIALOGUE], "held_out", folder=folder, held_out=held_out
  )
  for document in mixed:
    turns = conversations.parse(document.text)
    if len(turns) > 1:  # somebody answered
      yield (turns[0].text,)


def _lines(path: pathlib.Path) -> Iterator[Prompt]:
  if not path.is_file():
    raise FileNotFoundError(
      f"prompts 'file:{path}': there is no such file (from {os.getcwd()})"
    )
  if path.suffix.lower() not in (".txt", ".jsonl"):
    raise ValueError(f"prompts 'file:{path}': expected a .txt or .jsonl file")
  of_json = path.suffix.lower() == ".jsonl"
  with open(path, encoding="utf-8-sig") as file:
    for number, line in enumerate(file, 1):
      line = line.strip()
      if line:
        where = f"{path}, line {number}"
        yield _turns(line, where) if of_json else (line,)


def _turns(line: str, where: str) -> Prompt:
  """The turns on one line of a .jsonl file."""
  try:
    value = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: not JSON ({error})") from error
  if isinstance(value, dict):
    keys = [key for key in ("turns", "prompt", "text") if key in value]
    if not keys:
      raise ValueError(
        f"{where}: it has the keys {', '.join(value) or 'none'}; expected"
        ' "prompt", "text" or "turns"'
      )
    value = value[keys[0]]
  turns = [value] if isinstance(value, str) else value
  if (
    not isinstance(turns, list)
    or not turns
    or not all(isinstance(turn, str) and turn.strip() for turn in turns)
  ):
    raise ValueError(f"{where}: expected text, or a list of texts, not {turns}")
  return tuple(turns)
