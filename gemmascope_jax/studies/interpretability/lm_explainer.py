"""Explanations written by a language model that continues a few-shot prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gemmascope_jax.studies.interpretability import prompts
from gemmascope_jax.studies.interpretability.contexts import Contexts
from gemmascope_jax.studies.interpretability.outcomes import Failure


class LMExplainer:
  """Reads the first line of a continuation; see `outcomes.Explainer`.

  Args:
    generate: prompts to their continuations, one each, without the prompts;
      greedy, some 24 tokens are enough.
    tokenizer: of the contexts, for their text.
    name: of the model and of how it generates: with the prompt it determines
      the answers, which are kept on disk under it.
    contexts: at most so many are shown.
  """

  def __init__(
    self,
    generate: Callable[[list[str]], list[str]],
    tokenizer: Any,
    name: str,
    contexts: int = 10,
  ):
    self._generate, self._tokenizer = generate, tokenizer
    self._name, self._contexts = name, contexts

  def describe(self) -> dict[str, Any]:
    """See `outcomes.Explainer`."""
    return {
      "kind": "language model",
      "model": self._name,
      "contexts": self._contexts,
      "tokenizer": self._tokenizer.fingerprint,
    }

  def explain(self, shown: Sequence[Contexts]) -> list[Any | Failure]:
    """See `outcomes.Explainer`; explanations are strings."""
    asked = [
      prompts.explanation_prompt(
        contexts.first(self._contexts), self._tokenizer
      )
      for contexts in shown
    ]
    answers = self._generate(asked)
    if len(answers) != len(asked):
      raise ValueError(
        f"generate gave {len(answers)} continuations for {len(asked)} prompts:"
        " expected one each"
      )
    return [prompts.read_explanation(answer) for answer in answers]
