"""Explainer and simulator that ask a chat model.

The simulator asks for the activations in so many words and reads the answer;
an answer that can't be read, or a refusal, is a failure of that context.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gemmascope_jax.studies.interpretability import prompts
from gemmascope_jax.studies.interpretability.chat_endpoint import (
  ChatEndpoint,
  Messages,
)
from gemmascope_jax.studies.interpretability.contexts import Contexts, Sample
from gemmascope_jax.studies.interpretability.outcomes import Failure

_CHARACTERS_A_TOKEN = 3.0  # of English about 4: an estimate on the high side
_TYPICAL_EXPLANATION = "x" * 120


@dataclasses.dataclass(frozen=True)
class Prices:
  """Dollars for a million tokens.

  Attributes:
    input: of the question.
    output: of the answer.
  """

  input: float
  output: float


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a study will ask for at most, if nothing of it is on disk.

  Attributes:
    requests: without retries.
    input_tokens: estimated from the characters.
    output_tokens: if every answer is as long as it may be.
    dollars: None if no prices were given.
  """

  requests: int = 0
  input_tokens: int = 0
  output_tokens: int = 0
  dollars: float | None = 0.0

  def __add__(self, other: Cost) -> Cost:
    known = self.dollars is not None and other.dollars is not None
    return Cost(
      self.requests + other.requests,
      self.input_tokens + other.input_tokens,
      self.output_tokens + other.output_tokens,
      self.dollars + other.dollars if known else None,
    )


def cost(
  questions: Iterable[Messages], max_tokens: int, prices: Prices | None
) -> Cost:
  """What asking these questions costs at most.

  Args:
    questions: chat messages.
    max_tokens: of an answer.
    prices: None: unknown.
  """
  requests = characters = 0
  for messages in questions:
    requests += 1
    characters += len(json.dumps(messages, ensure_ascii=False))
  given = round(characters / _CHARACTERS_A_TOKEN)
  taken = requests * max_tokens
  dollars = None
  if prices is not None:
    dollars = (given * prices.input + taken * prices.output) / 1e6
  return Cost(requests, given, taken, dollars)


class ChatExplainer:
  """Asks for a short phrase; see `outcomes.Explainer`.

  Args:
    endpoint: the model.
    tokenizer: of the contexts, for their text.
    prices: for the estimate of the cost.
  """

  def __init__(
    self, endpoint: ChatEndpoint, tokenizer: Any, prices: Prices | None = None
  ):
    self._endpoint, self._tokenizer = endpoint, tokenizer
    self._prices = prices

  @property
  def usage(self) -> dict[str, int]:
    """What the endpoint was asked so far."""
    return dict(self._endpoint.usage)

  def describe(self) -> dict[str, Any]:
    """See `outcomes.Explainer`."""
    return {"kind": "chat", **self._endpoint.describe()}

  def question(self, shown: Contexts) -> Messages:
    """The messages that ask for an explanation."""
    prompt = prompts.explanation_prompt(shown, self._tokenizer)
    order = "Continue the text with the missing phrase and nothing else."
    return [
      {"role": "system", "content": order},
      {"role": "user", "content": prompt},
    ]

  def explain(self, shown: Sequence[Contexts]) -> list[Any | Failure]:
    """See `outcomes.Explainer`; explanations are strings."""
    answers = self._endpoint.ask_all([self.question(each) for each in shown])
    return [
      answer
      if isinstance(answer, Failure)
      else prompts.read_explanation(answer)
      for answer in answers
    ]

  def cost(self, samples: Sequence[Sample]) -> Cost:
    """Of explaining these latents, at most."""
    questions = (self.question(sample.shown) for sample in samples)
    return cost(questions, self._endpoint.max_tokens, self._prices)


class ChatSimulator:
  """Asks for activations from 0 to 10; see `outcomes.Simulator`.

  Args:
    endpoint: the model.
    tokenizer: of the contexts, for the tokens' text.
    prices: for the estimate of the cost.
  """

  def __init__(
    self, endpoint: ChatEndpoint, tokenizer: Any, prices: Prices | None = None
  ):
    self._endpoint, self._tokenizer = endpoint, tokenizer
    self._prices = prices

  @property
  def usage(self) -> dict[str, int]:
    """What the endpoint was asked so far."""
    return dict(self._endpoint.usage)

  def describe(self) -> dict[str, Any]:
    """See `outcomes.Simulator`."""
    return {"kind": "chat", **self._endpoint.describe()}

  def question(self, explanation: Any, tokens: np.ndarray) -> Messages:
    """The messages about one context's counted tokens."""
    pieces = self._tokenizer.pieces([int(id_) for id_ in tokens])
    text = explanation
    if not isinstance(text, str):
      text = json.dumps(text, ensure_ascii=False)
    return prompts.simulation_question(text, pieces)

  def simulate(
    self, explanation: Any, tokens: np.ndarray, keep: np.ndarray
  ) -> list[np.ndarray | Failure]:
    """See `outcomes.Simulator`; predictions are from 0 to 10."""
    answers = self._endpoint.ask_all(
      [
        self.question(explanation, row[kept])
        for row, kept in zip(tokens, keep, strict=True)
      ]
    )
    out = []
    for answer, kept in zip(answers, keep, strict=True):
      if not isinstance(answer, Failure):
        answer = prompts.read_simulation(answer, int(kept.sum()))
      if not isinstance(answer, Failure):
        row = np.zeros(len(kept))
        row[kept] = answer
        answer = row
      out.append(answer)
    return out

  def cost(self, samples: Sequence[Sample]) -> Cost:
    """Of simulating all held-out contexts of these latents once, at most."""
    questions = (
      self.question(_TYPICAL_EXPLANATION, row[kept])
      for sample in samples
      for row, kept in zip(
        sample.held_out.tokens, sample.held_out.keep, strict=True
      )
    )
    return cost(questions, self._endpoint.max_tokens, self._prices)
