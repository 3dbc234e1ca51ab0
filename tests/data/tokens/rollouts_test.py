import dataclasses

import jax
import numpy as np
import pytest
import tiny_gemma
from turn_tokenizer import CHAT, HOSTILE, TOKENIZER

from gemmascope_jax import gemma
from gemmascope_jax.data.tokens import rollouts as library
from gemmascope_jax.data.tokens.rollouts import (
  MARKUP,
  PADDING,
  PROMPT,
  ROLLOUT,
)

PROMPTS = [
  ("hello", "and then?"),
  ("why",),
  (HOSTILE, "go on"),
  ("a", "b", "c"),
]
NEW = 7


@pytest.fixture(scope="module")
def lm():
  """Random, but ends its turns and its texts often."""
  config = dataclasses.replace(
    tiny_gemma.CONFIG, vocab_size=TOKENIZER.vocab_size, context=512
  )
  shapes = jax.eval_shape(lambda: gemma.init(config, jax.random.key(0)))
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype)
  params = jax.tree.map(draw, shapes)
  # Long vectors: the logits at these words are large, either way.
  params["embedder"]["embedding"][CHAT.end] *= 4
  params["embedder"]["embedding"][TOKENIZER.eos_id] *= 6
  return gemma.Gemma(config, params, TOKENIZER, "0" * 64, "tiny")


def _roll(lm, prompts=PROMPTS, **arguments):
  arguments = {"max_new_tokens": NEW, "per_prompt": 3} | arguments
  return library.rollouts(lm, prompts, progress=False, **arguments)


@pytest.fixture(scope="module")
def expected(lm):
  return _roll(lm)


def _runs(roles):
  """[(role, length)] of consecutive positions of the same role."""
  edges = np.flatnonzero(np.diff(roles)) + 1
  parts = np.split(roles, edges)
  return [(int(part[0]), len(part)) for part in parts]


def test_every_position_has_its_role(expected):
  found = expected
  assert found.tokens.shape == found.roles.shape and len(found.tokens) == 12
  kinds = set()
  for row in range(12):
    prompt = PROMPTS[row // 3]
    tokens, roles = found.tokens[row], found.roles[row]
    length = int((roles != PADDING).sum())
    assert (roles[:length] != PADDING).all()
    assert (tokens[length:] == TOKENIZER.pad_id).all()
    at, answers = 1, 0
    assert (tokens[0], roles[0]) == (TOKENIZER.bos_id, MARKUP)
    for number, text in enumerate(prompt):
      if at == length:
        break  # the text has ended
      if number:
        ended = tokens[at - 1] == CHAT.end
        opening = (*(() if ended else (CHAT.end,)), *CHAT.between, *CHAT.prefix)
        kinds.add(("closed", bool(ended)))
      else:
        opening = CHAT.prefix
      said = (*CHAT.encode(TOKENIZER, text), *CHAT.suffix)
      for part, role in ((opening, MARKUP), (said, PROMPT)):
        end = at + len(part)
        assert tokens[at:end].tolist() == list(part)
        assert (roles[at:end] == role).all()
        at = end
      (role, answer), *_ = _runs(roles[at:])
      assert role == ROLLOUT and 1 <= answer <= NEW
      stops = np.isin(tokens[at : at + answer], (CHAT.end, TOKENIZER.eos_id))
      assert not stops[:-1].any() and (stops[-1] or answer == NEW)
      at, answers = at + answer, answers + 1
    assert at == length
    assert found.answers[row] == answers
    assert found.stopped[row] == stops[-1]
    if answers < len(prompt):
      assert tokens[length - 1] == TOKENIZER.eos_id
      kinds.add("the text ended")
  # All that may happen did.
  assert kinds == {("closed", True), ("closed", False), "the text ended"}
  markup = 1 + len(CHAT.prefix)
  spelled = [
    len(CHAT.encode(TOKENIZER, p[0])) + len(CHAT.suffix) for p in PROMPTS
  ]
  expected = np.repeat(spelled, 3) + markup
  np.testing.assert_array_equal(found.prompt_lengths, expected)
  assert not (found.prompt & found.rollout).any()


def test_answers_are_what_the_model_says_to_all_before(lm):
  found = _roll(lm, temperature=0, per_prompt=1)
  mask = found.roles != PADDING
  out = gemma.forward(lm.config, lm.params, found.tokens, mask=mask)
  said = found.rollout[:, 1:]
  np.testing.assert_array_equal(
    found.tokens[:, 1:][said], np.argmax(out.logits[:, :-1], axis=-1)[said]
  )
  assert said.sum() > len(PROMPTS)


def test_the_batch_changes_nothing(lm, expected):
  found = _roll(lm, batch=5)
  for name in ("tokens", "roles", "stopped", "answers"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  first = _roll(lm, PROMPTS[:2])
  width = first.tokens.shape[1]
  np.testing.assert_array_equal(first.tokens, expected.tokens[:6, :width])


def test_samples_and_seeds_differ(lm):
  found = _roll(lm, [("tell me",)], per_prompt=20)
  assert len({tuple(row) for row in found.tokens.tolist()}) > 10
  other = _roll(lm, [("tell me",)], per_prompt=20, seed=1)
  assert other.tokens.tolist() != found.tokens.tolist()


def test_fewer_turns(lm):
  found = _roll(lm, turns=1)
  assert (found.answers == 1).all()
  assert all(len(_runs(roles)) <= 4 for roles in found.roles)


def test_kept_and_gone_on_with(lm, expected, tmp_path, monkeypatch):
  calls, sample = [], gemma.sample

  def stopped(*arguments, **keywords):
    calls.append(keywords["rows"])
    if len(calls) == 5:
      raise KeyboardInterrupt
    return sample(*arguments, **keywords)

  monkeypatch.setattr(gemma, "sample", stopped)
  options = dict(folder=tmp_path, batch=5, source="mine", licence="ours")
  with pytest.raises(KeyboardInterrupt):
    _roll(lm, **options)
  assert len(list(tmp_path.glob("*-parts/*"))) >= 1
  found = _roll(lm, **options)
  assert all(rows[0] >= 5 for rows in calls[5:])  # the first five were kept
  for again in (found, _roll(lm, **options)):
    for name in ("tokens", "roles", "stopped", "answers"):
      ours, theirs = getattr(again, name), getattr(expected, name)
      assert ours.dtype == theirs.dtype
      np.testing.assert_array_equal(ours, theirs)
    assert again.about["source"] == "mine" and again.about["seed"] == 0
    assert again.about["weights_hash"] == lm.weights_hash
  count = len(calls)
  _roll(lm, **options)
  assert len(calls) == count  # it was there
  _roll(lm, **options, seed=2)
  assert len(calls) > count
  assert len(list(tmp_path.glob("*.json"))) == 2
  assert not list(tmp_path.glob("*-parts"))


def test_damage_is_noticed(lm, tmp_path):
  _roll(lm, folder=tmp_path)
  (path,) = tmp_path.glob("*.json")
  archive = path.with_suffix(".npz")
  content = bytearray(archive.read_bytes())
  content[200] ^= 1
  archive.write_bytes(content)
  with pytest.raises(
    ValueError, match="is damaged: delete .* and run the same"
  ):
    library.load(path)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"prompts": []}, "rollouts of no prompts"),
    ({"prompts": ["hello"]}, "prompt 0 is 'hello': expected its turns"),
    ({"prompts": [("a", "")]}, "none of them empty"),
    ({"prompts": [("a",), ("x" * 500,)]}, "prompt 1 .* tiny is made for 512"),
    ({"per_prompt": 0}, "per_prompt is 0; expected at least 1"),
    ({"turns": 0}, "turns is 0"),
    ({"batch": 0}, "batch is 0"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
  ],
)
def test_errors(lm, change, message):
  with pytest.raises(ValueError, match=message):
    _roll(lm, **change)
