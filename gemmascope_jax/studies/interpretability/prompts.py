"""The words of the prompts, and how answers are read.

Few-shot, so that a model without instruction training can follow. The examples
are invented. Letters: C contexts, T tokens in a context.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmascope_jax.studies.interpretability.contexts import Contexts
from gemmascope_jax.studies.interpretability.outcomes import (
  PARSE,
  REFUSAL,
  Failure,
)

STEPS = 10  # activations are shown as whole numbers from 0 to this
LONGEST = 300  # characters of an explanation

EXPLAIN = (
  "Each feature of a neural network fires on some words of a text, from 0 (not"
  " at all) to 10 (most strongly). Below are passages and the words on which a"
  " feature fires in them, then a short phrase that says what it fires on.\n\n"
)

# (passage, what fires in it), ..., and the explanation.
_EXPLAIN_EXAMPLES = (
  (
    (
      (
        "The ferry leaves on Tuesday and comes back at noon.",
        ((" Tuesday", 10),),
      ),
      (
        "We met every Friday, and some weeks on Sunday too.",
        ((" Friday", 9), (" Sunday", 8)),
      ),
      ("Closed from Monday until further notice.", ((" Monday", 8),)),
    ),
    "names of days of the week",
  ),
  (
    (
      (
        "He had not slept, nor had he eaten anything.",
        ((" not", 7), (" nor", 10)),
      ),
      ("There is no bread left; I never buy any.", ((" no", 8), (" never", 9))),
      ("Nobody knew where the path went.", (("Nobody", 9),)),
    ),
    "words of negation",
  ),
  (
    (
      (
        "for (i = 0; i < count; i++) { total += i; }",
        ((" {", 10), (" }", 4)),
      ),
      ("int main() { return 0; }", ((" {", 9), (" }", 5))),
      ("The recipe needs {two} eggs.", ((" {", 3),)),
    ),
    "curly brackets in program code",
  ),
)


def explanation_prompt(contexts: Contexts, tokenizer: Any) -> str:
  """A prompt whose continuation, up to the end of the line, is an explanation.

  Args:
    contexts: strongest first.
    tokenizer: gives the tokens' texts.
  """
  parts = [EXPLAIN]
  for number, (passages, phrase) in enumerate(_EXPLAIN_EXAMPLES, 1):
    parts.append(f"Feature {number}\n")
    parts += [_passage(text, fires) for text, fires in passages]
    parts.append(f"Feature {number} fires on: {phrase}\n\n")
  last = len(_EXPLAIN_EXAMPLES) + 1
  parts.append(f"Feature {last}\n")
  parts += passages_of(contexts, tokenizer)
  parts.append(f"Feature {last} fires on:")
  return "".join(parts)


def passages_of(contexts: Contexts, tokenizer: Any) -> list[str]:
  """Each context as its text and the tokens that fire, strongest first."""
  found = []
  for tokens, levels, keep in zip(
    contexts.tokens, contexts.quantised(STEPS), contexts.keep, strict=True
  ):
    pieces = tokenizer.pieces([int(id_) for id_ in tokens[keep]])
    fires = [
      (piece, int(level))
      for piece, level in zip(pieces, levels[keep], strict=True)
      if level > 0
    ]
    fires.sort(key=lambda pair: -pair[1])
    found.append(_passage("".join(pieces), fires))
  return found


def _passage(text: str, fires: Sequence[tuple[str, int]]) -> str:
  flat = " ".join(text.split())
  words = ", ".join(
    f"{json.dumps(w, ensure_ascii=False)} {n}" for w, n in fires
  )
  return f"Passage: {flat}\nFires on: {words}\n"


def read_explanation(answer: str) -> str | Failure:
  """The first line of an answer, if it is one."""
  line = answer.strip().split("\n")[0].strip()
  if refused(line):
    return Failure(REFUSAL, line[:LONGEST])
  if not any(char.isalnum() for char in line):
    return Failure(PARSE, f"no words in the answer {answer[:LONGEST]!r}")
  if len(line) > LONGEST:
    return Failure(PARSE, f"a line of {len(line)} characters: {line[:80]!r}")
  return line


_REFUSED = re.compile(
  r"(i['’]?m sorry|i am sorry|sorry,|i can['’]?t|i cannot|i can not"
  r"|i am unable|i['’]?m unable|i won['’]?t|i will not|unable to comply)\b",
  re.IGNORECASE,
)


def refused(answer: str) -> bool:
  """Whether an answer begins as a refusal does."""
  return _REFUSED.match(answer.strip().lstrip("\"'")) is not None


def simulation_question(
  explanation: str, pieces: Sequence[str]
) -> list[dict[str, str]]:
  """Chat messages that ask for the activations of one context."""
  lines = "\n".join(
    f"{i} {json.dumps(piece, ensure_ascii=False)}"
    for i, piece in enumerate(pieces)
  )
  return [
    {
      "role": "system",
      "content": (
        "A feature of a neural network fires on some tokens of a text, from 0"
        f" (not at all) to {STEPS} (most strongly). You are told what it fires"
        " on and given numbered tokens. Answer with one JSON object and"
        ' nothing else: from token number to activation, as in {"3": 10,'
        ' "7": 2}. Leave out the tokens on which it does not fire; {} means'
        " that it fires on none."
      ),
    },
    {
      "role": "user",
      "content": f"It fires on: {explanation}\n\nTokens:\n{lines}",
    },
  ]


def read_simulation(answer: str, tokens: int) -> np.ndarray | Failure:
  """float64 [tokens] from an answer to `simulation_question`."""
  if refused(answer):
    return Failure(REFUSAL, answer[:LONGEST])
  start, stop = answer.find("{"), answer.rfind("}")
  out = np.zeros(tokens)
  try:
    found = json.loads(answer[start : stop + 1] if start >= 0 else "")
    if not isinstance(found, dict):
      raise ValueError("not an object")
    for key, value in found.items():
      place = int(key)
      if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
      if not (0 <= place < tokens and 0 <= value <= STEPS):
        raise ValueError(f"token {key}: {value} is out of range")
      out[place] = value
  except (ValueError, RecursionError) as error:
    return Failure(PARSE, f"{error}: {answer[:LONGEST]!r}")
  return out
