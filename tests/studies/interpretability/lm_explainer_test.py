import pytest

from gemmascope_jax.studies.interpretability.lm_explainer import LMExplainer
from gemmascope_jax.studies.interpretability.outcomes import Failure
from tests.studies.interpretability import planted


def test_continuations_are_read_in_order():
  asked = []

  def generate(prompts):
    asked.extend(prompts)
    return [" the word w7\nFeature 5", "", "I'm sorry, no"]

  explainer = LMExplainer(generate, planted.Tokenizer(), "a model", contexts=2)
  shown = [planted.sample(i, "word").shown for i in range(3)]
  found = explainer.explain(shown)
  assert found[0] == "the word w7"
  assert [x.kind for x in found[1:]] == ["parse", "refusal"]
  assert all(isinstance(x, Failure) for x in found[1:])
  assert len(asked) == 3
  assert all(prompt.count("w7 ") >= 1 for prompt in asked)
  last = asked[0].split("Feature 4\n")[1]
  assert last.count("Passage:") == 2


def test_a_generator_that_loses_prompts_is_an_error():
  explainer = LMExplainer(lambda prompts: [], planted.Tokenizer(), "a model")
  with pytest.raises(ValueError, match="0 continuations for 1 prompts"):
    explainer.explain([planted.sample(0, "word").shown])
