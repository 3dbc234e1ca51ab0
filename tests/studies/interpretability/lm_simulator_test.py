"""One pass over a context against a forward pass for every token."""

import dataclasses

import jax
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.studies.interpretability import lm_simulator
from gemmascope_jax.studies.interpretability.lm_simulator import LMSimulator
from tests.data import tiny_gemma


@pytest.fixture(scope="module")
def lm():
  config = dataclasses.replace(tiny_gemma.CONFIG, final_softcap=0.3)
  return dataclasses.replace(tiny_gemma.lm(), config=config)


def _contexts():
  random = np.random.default_rng(0)
  tokens = random.integers(4, 260, (3, 6)).astype(np.int32)
  keep = np.ones(tokens.shape, bool)
  keep[0, 0] = keep[2, 3] = False
  return tokens, keep


@pytest.fixture(scope="module")
def expected(lm):
  """The expected digit of each token, from whole logits of its own pass."""
  digits = [lm.tokenizer.encode(str(d))[0] for d in range(10)]
  forward = jax.jit(
    lambda ids, last: gemma.forward(lm.config, lm.params, ids).logits[0, last]
  )

  def of(row):
    prompt, positions = LMSimulator(lm).prompt("days", row)
    found = []
    for position in positions:
      # No padding, and other text where the later tokens stand.
      ids = np.full(1_000, 77)
      ids[: position + 1] = prompt[: position + 1]
      logits = np.asarray(forward(ids[None], position), np.float64)
      p = np.exp(logits - logits.max())[digits]
      found.append((np.arange(10) * p).sum() / p.sum())
    return np.array(found)

  tokens, keep = _contexts()
  return [of(row[kept]) for row, kept in zip(tokens, keep, strict=True)]


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_every_prediction_is_the_one_of_its_own_forward_pass(
  lm, expected, batch
):
  tokens, keep = _contexts()
  found = LMSimulator(lm, batch).simulate("days", tokens, keep)
  assert len(found) == 3
  for kept, answer, right in zip(keep, found, expected, strict=True):
    np.testing.assert_allclose(answer[kept], right, rtol=1e-4)
    assert np.ptp(answer[kept]) > 0


def test_the_positions_are_those_of_the_tabs(lm):
  tokenizer = lm.tokenizer
  tokens = np.array([101, 55, 200])
  prompt, positions = LMSimulator(lm).prompt("days  of\nthe week", tokens)
  tab, newline = tokenizer.encode("\t")[0], tokenizer.encode("\n")[0]
  placeholder = tokenizer.encode("?")[0]
  for token, position in zip(tokens, positions, strict=True):
    line = prompt[position - 1 : position + 3]
    assert line.tolist() == [token, tab, placeholder, newline]
  assert positions[-1] + 3 == len(prompt) and prompt[0] == tokenizer.bos_id
  before = tokenizer.decode(prompt[: positions[0] - 1])
  assert before.endswith("Fires on: days of the week\n")
  assert "y\t9\n" in before  # of the examples


def test_the_explanation_is_read(lm):
  tokens, keep = _contexts()
  one, other = (
    LMSimulator(lm).simulate(text, tokens, keep) for text in ("days", "nights")
  )
  assert np.abs(one[0] - other[0]).max() > 1e-6
  again = LMSimulator(lm).simulate("days", tokens, keep)
  np.testing.assert_array_equal(one[0], again[0])


def test_what_it_cannot_work_with_is_refused(lm):
  class Pairs(tiny_gemma.ByteTokenizer):
    def encode(self, text):
      return super().encode(text + " " if text == "7" else text)

  with pytest.raises(ValueError, match="2 tokens of '7'"):
    LMSimulator(dataclasses.replace(lm, tokenizer=Pairs()))
  with pytest.raises(ValueError, match="reads text only"):
    LMSimulator(lm).simulate({"tokens": []}, *_contexts())
  with pytest.raises(ValueError, match="batch 0"):
    LMSimulator(lm, 0)
  assert LMSimulator(lm).simulate("x", *(x[:0] for x in _contexts())) == []


def test_prompts_are_padded_to_few_lengths(lm):
  lm_simulator._expected.clear_cache()
  simulator = LMSimulator(lm)
  for text in ("a", "ab", "abc"):
    simulator.simulate(text, *_contexts())
  assert lm_simulator._expected._cache_size() <= 2
