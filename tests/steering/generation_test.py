"""Text under edits, against full passes without a cache."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gemmascope_jax import gemma, steering
from tests.steering import planted

LM, SAE, SITE = planted.lm(), planted.sae(), planted.SITE
# Of 1 to 9 words: far more and far fewer than a window of 4.
PROMPTS = [
  "the river was cold and wind is far near",
  "old trees sing",
  "rain",
  "people of Paris sing about bread",
]
NEW = 12
EDITS = {
  "none": None,
  "zero": {SITE: steering.add(SAE, 5, 0.0)},
  "add": {SITE: steering.add(SAE, 5, 1.5)},
  "clamp": {SITE: steering.clamp(SAE, [5, 2], [3.0, 0.0])},
}


@functools.cache
def _said(name, temperature=0.0, **options):
  return steering.generate(
    LM,
    PROMPTS,
    EDITS[name],
    max_new_tokens=NEW,
    temperature=temperature,
    batch=4,
    **options,
  )


@jax.jit
def _logits(edits, tokens):
  return gemma.forward(LM.config, LM.params, tokens, edits=edits).logits


@pytest.mark.parametrize("positions", ["all", "answer"])
@pytest.mark.parametrize("name", ["add", "clamp"])
def test_the_cache_changes_nothing(name, positions):
  said = _said(name, positions=positions)
  place = np.arange(said.tokens.shape[1])[None]
  where = planted.POLICY.keep(said.tokens)
  if positions == "answer":
    where &= place >= said.prompt_lengths[:, None] - 1
  # Causal, so that one pass over the whole text is a pass at each step.
  edits = {s: steering.at(e, where) for s, e in EDITS[name].items()}
  likeliest = np.asarray(_logits(edits, said.tokens)).argmax(axis=-1)
  np.testing.assert_array_equal(
    said.tokens[:, 1:][said.new[:, 1:]], likeliest[:, :-1][said.new[:, 1:]]
  )
  assert said.new.sum() == 4 * NEW
  lengths = [1 + len(prompt.split()) for prompt in PROMPTS]
  np.testing.assert_array_equal(said.prompt_lengths, lengths)
  for row, prompt, text in zip(said.tokens, PROMPTS, said.texts, strict=True):
    assert LM.tokenizer.decode(row) == f"{prompt} {text}"


def test_positions_matter():
  assert _said("add").texts != _said("add", positions="answer").texts


def test_the_policys_tokens_are_left_alone():
  # BOS is in all that is compared above; here, the word that it says most.
  most = np.bincount(_said("add").tokens[_said("add").new]).argmax()
  spared = dataclasses.replace(
    planted.POLICY, excluded_ids=(0, 1, 2, int(most))
  )
  found = _said("add", policy=spared)
  edits = {SITE: steering.at(EDITS["add"][SITE], spared.keep(found.tokens))}
  likeliest = np.asarray(_logits(edits, found.tokens)).argmax(axis=-1)
  np.testing.assert_array_equal(
    found.tokens[:, 1:][found.new[:, 1:]], likeliest[:, :-1][found.new[:, 1:]]
  )
  assert (found.tokens != _said("add").tokens).any()


def test_strength_zero_is_the_unsteered_text():
  plain = _said("none", temperature=1.0, samples=3)
  zero = _said("zero", temperature=1.0, samples=3)
  np.testing.assert_array_equal(zero.tokens, plain.tokens)
  assert zero.texts == plain.texts


def test_a_planted_latent_steers_towards_its_word():
  count = lambda said: np.mean(
    [text.split().count("Paris") for text in said.texts]
  )
  said = {
    strength: steering.generate(
      LM,
      PROMPTS,
      {SITE: steering.add(SAE, planted.PARIS, strength)},
      max_new_tokens=NEW,
      samples=6,
      batch=4,
    )
    for strength in (-8.0, 0.0, 4.0, 16.0)
  }
  found = [count(each) for each in said.values()]
  assert found == sorted(found) and found[0] < 0.3 * found[1]
  assert found[3] > 6 * found[1]


def test_seeds_samples_and_batches():
  said = _said("add", temperature=1.0, samples=3)
  assert len(said.texts) == 12 and len(set(said.texts)) > 9
  some = steering.generate(
    LM,
    PROMPTS[:3],
    EDITS["add"],
    max_new_tokens=NEW,
    samples=3,
    batch=4,  # the last batch is not full
  )
  np.testing.assert_array_equal(some.tokens, said.tokens[:9])
  assert some.texts == said.texts[:9]
  other = _said("add", temperature=1.0, samples=3, seed=1)
  assert (other.tokens != said.tokens).any(axis=1).mean() > 0.7


def test_an_empty_prompt_is_bos_alone():
  tokens, lengths = steering.encode(LM, ["", "rain wind"], room=3)
  assert lengths.tolist() == [1, 3] and tokens.shape == (2, 8)
  assert tokens[0].tolist() == [2] + [0] * 7


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"prompts": []}, "expected a list of at least one"),
    ({"prompts": "rain"}, "texts are 'rain': expected a list"),
    ({"prompts": ["rain", None]}, "text 1 is None: expected a text"),
    ({"prompts": ["rain", "wind " * 60]}, r"text 1 .*61 tokens.*made for 64"),
    ({"samples": 0}, "samples is 0; expected at least 1"),
    ({"batch": 0}, "batch is 0; expected at least 1"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
    ({"positions": "last"}, "'last'; expected one of all, answer"),
    ({"temperature": np.nan}, "temperature is nan; expected"),
    ({"edits": {"res.7": EDITS["add"][SITE]}}, r"site res.7: .* layers 0\.\.2"),
    (
      {"edits": {"att.1": steering.direction(np.ones(5), 1.0)}},
      "width 5 for activations of width 16",
    ),
  ],
)
def test_errors(change, message):
  given = {"prompts": PROMPTS[:1], "edits": None, "max_new_tokens": 2} | change
  with pytest.raises(ValueError, match=message):
    steering.generate(LM, **given)
