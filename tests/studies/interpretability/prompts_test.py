import numpy as np
import pytest

from gemmascope_jax.studies.interpretability import prompts
from gemmascope_jax.studies.interpretability.contexts import Contexts
from gemmascope_jax.studies.interpretability.outcomes import Failure
from tests.studies.interpretability import planted


def test_the_prompt_shows_passages_and_what_fires():
  contexts = Contexts(
    np.array([[2, 5, 6, 5]], np.int32),
    np.array([[0, 2.0, 0, 4]], np.float32),
    np.array([[False, True, True, True]]),
  )
  prompt = prompts.explanation_prompt(contexts, planted.Tokenizer())
  assert prompt.endswith(
    'Feature 4\nPassage: w5 w6 w5\nFires on: "w5 " 10, "w5 " 5\n'
    "Feature 4 fires on:"
  )
  assert "w2" not in prompt  # BOS doesn't count
  assert prompt.count("Feature 3") == 2


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    (" days of the week\nFeature 5\nPassage", "days of the week"),
    ("\n names \n", "names"),
    ("", "parse"),
    (" ...\nwords", "parse"),
    ("x" * 301, "parse"),
    ("I'm sorry, but I can't help with that.", "refusal"),
    ('"I cannot say', "refusal"),
    ('the words "I can\'t"', 'the words "I can\'t"'),
    ("I cantered away", "I cantered away"),
  ],
)
def test_explanations_are_read_or_refused(answer, expected):
  found = prompts.read_explanation(answer)
  if isinstance(found, Failure):
    found = found.kind
  assert found == expected


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ('{"1": 10, "3": 2.5}', [0, 10, 0, 2.5]),
    ('```json\n{"0": 1}\n```', [1, 0, 0, 0]),
    ("{}", [0, 0, 0, 0]),
    ("", "parse"),
    ("It fires on token 3.", "parse"),
    ('{"4": 1}', "parse"),  # there are four tokens
    ('{"-1": 1}', "parse"),
    ('{"1": 11}', "parse"),
    ('{"1": NaN}', "parse"),
    ('{"1": true}', "parse"),
    ('{"1": "10"}', "parse"),
    ('{"day": 10}', "parse"),
    ("[1, 2, 3, 4]", "parse"),
    ('{"1": ' + "[" * 100_000 + "}", "parse"),
    ("I can't do that {}", "refusal"),
  ],
)
def test_simulations_are_read_or_refused(answer, expected):
  found = prompts.read_simulation(answer, 4)
  if isinstance(found, Failure):
    assert found.kind == expected
  else:
    np.testing.assert_array_equal(found, expected)


def test_an_unknown_kind_of_failure_is_refused():
  with pytest.raises(ValueError, match="kind 'zero': expected one of"):
    Failure("zero", "")
