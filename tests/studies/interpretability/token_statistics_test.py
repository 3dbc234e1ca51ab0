import numpy as np
import pytest

from gemmascope_jax.studies.interpretability import scores
from gemmascope_jax.studies.interpretability.contexts import Contexts
from gemmascope_jax.studies.interpretability.token_statistics import (
  TokenStatistics,
)
from tests.studies.interpretability import planted


def test_the_explanation_is_each_tokens_mean_activation():
  contexts = Contexts(
    np.array([[5, 6, 5], [7, 6, 5]], np.int32),
    np.array([[2.0, 0, 4], [1, 0, 0]], np.float32),
    np.array([[True, True, True], [True, True, False]]),
  )
  statistics = TokenStatistics(tokenizer=planted.Tokenizer())
  (found,) = statistics.explain([contexts])
  assert found == {"tokens": [[5, 3.0], [7, 1.0]], "pieces": ["w5 ", "w7 "]}
  predicted = statistics.simulate(found, contexts.tokens, contexts.keep)
  assert [row.tolist() for row in predicted] == [[3, 0, 3], [1, 0, 3]]
  (short,) = TokenStatistics(most=1).explain([contexts])
  assert short == {"tokens": [[5, 3.0]]}


@pytest.mark.parametrize(
  ("kind", "low", "high"), [("word", 0.99, 1), ("noise", -0.25, 0.35)]
)
def test_one_word_is_simulated_and_noise_is_not(kind, low, high):
  found = []
  for latent in range(12):
    sample = planted.sample(latent, kind)
    statistics = TokenStatistics()
    (explanation,) = statistics.explain([sample.shown])
    held_out = sample.held_out
    predicted = statistics.simulate(explanation, held_out.tokens, held_out.keep)
    keep = held_out.keep
    score = scores.simulation(
      [x[k] for x, k in zip(held_out.activations, keep, strict=True)],
      [x[k] for x, k in zip(predicted, keep, strict=True)],
    )
    found.append(score.mean)
  assert low <= min(found) and max(found) <= high
  if kind == "noise":  # its mean is zero within three standard errors
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_another_explainers_words_are_refused():
  with pytest.raises(ValueError, match="only its own explainer's"):
    TokenStatistics().simulate("days", np.zeros((1, 2), int), np.ones((1, 2)))
  with pytest.raises(ValueError, match="most 0"):
    TokenStatistics(most=0)
