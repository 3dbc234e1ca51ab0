"""Training learns what there is to learn, and survives being stopped."""

import dataclasses
import signal

import jax
import numpy as np
import pytest
import tiny_chats

from gemmascope_jax import checkpoints, finetune, gemma
from gemmascope_jax.finetune import delta, tuning
from gemmascope_jax.training import PreemptedError

RECIPE = finetune.Recipe(
  steps=60, batch=4, layers=2, learning_rate=1e-2, warmup_steps=5
)
LICENCES = {"made up": "ours"}


def _run(folder, recipe=RECIPE, train=None, **arguments):
  return finetune.run(
    tiny_chats.lm(),
    tiny_chats.chats(14) if train is None else train,
    tiny_chats.chats(6, seed=1),
    recipe,
    folder,
    licences=LICENCES,
    progress=False,
    **arguments,
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that was left alone."""
  folder = tmp_path_factory.mktemp("whole")
  return folder, _run(folder)


def test_it_learns_to_answer_and_to_stop(whole):
  folder, result = whole
  assert result["loss_before"]["mean"] > 3
  assert result["loss_after"]["mean"] < 0.1
  assert result["difference"]["mean"] == pytest.approx(
    result["loss_after"]["mean"] - result["loss_before"]["mean"]
  )
  assert result["loss_after"]["n"] == 6
  assert result["label"] == "tiny + our short chat fine-tune"
  assert result["tokens"]["learned"] == 60 * 4 * len("ok>")
  tuned = finetune.apply(tiny_chats.lm(), folder)
  chat, tokenizer = tiny_chats.CHAT, tiny_chats.TOKENIZER
  prompt = [2, *chat.prefix, *tokenizer.encode("wxyz"), *chat.suffix]
  said = gemma.sample(
    tuned.config,
    tuned.params,
    np.array([prompt] * 4),
    stop_ids=(chat.end, tokenizer.eos_id),
    pad_id=0,
    max_new_tokens=8,
  )
  assert said.stopped.all()
  assert {
    tokenizer.decode(np.asarray(row)[len(prompt) : end - 1])
    for row, end in zip(said.tokens, said.lengths, strict=True)
  } == {"ok"}
  # Only the last blocks, and no embedding, are in the delta.
  changed = {name.split("/")[0] for name in delta._open(folder)[1]}
  assert changed == {"layer_1", "layer_2"}


def test_noise_teaches_nothing_that_holds_elsewhere(tmp_path):
  # Answers of random letters: all that can be learned is which ids are letters.
  rng = np.random.default_rng(3)

  def noise(count):
    found = tiny_chats.chats(count)
    tokens = found.tokens.copy()
    inside = found.counted & (tokens != tiny_chats.CHAT.end)
    tokens[inside] = rng.integers(101, 127, inside.sum())
    return dataclasses.replace(found, tokens=tokens)

  letters = 2 / 3 * np.log(26)  # and the end of the turn is sure
  result = finetune.run(
    tiny_chats.lm(),
    noise(200),
    noise(60),
    RECIPE,
    tmp_path,
    licences=LICENCES,
    progress=False,
  )
  after = result["loss_after"]
  assert after["mean"] > letters - 3 * after["stderr"]


def test_it_goes_on_where_it_was_stopped(whole, tmp_path, monkeypatch):
  steps, step = [], tuning._step

  def stopped(*arguments):
    steps.append(len(steps))
    if len(steps) in (20, 21, 45):
      signal.raise_signal(signal.SIGTERM)
    return step(*arguments)

  monkeypatch.setattr(tuning, "_step", stopped)
  for _ in range(3):
    with pytest.raises(PreemptedError, match="of 60 is saved in"):
      _run(tmp_path)
  saved = []
  restore = checkpoints.Run.restore
  monkeypatch.setattr(
    checkpoints.Run,
    "restore",
    lambda self, at, like: saved.append(at) or restore(self, at, like),
  )
  result = _run(tmp_path)
  assert saved == [45] and len(steps) == 60
  folder, expected = whole
  assert result == expected
  for name in (delta.FILE, "result.json"):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
  assert not (tmp_path / "checkpoints").exists()
  # Nothing is left to do.
  assert _run(tmp_path) == expected and len(steps) == 60


def test_every_conversation_is_seen_before_any_is_seen_twice():
  recipe = finetune.Recipe(steps=9, batch=4, warmup_steps=0)
  seen = [tuning.order(6, recipe, step) for step in range(9)]
  epochs = np.concatenate(seen).reshape(6, 6)
  assert (np.sort(epochs, axis=1) == np.arange(6)[None]).all()
  assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_schedule():
  recipe = finetune.Recipe(steps=10, warmup_steps=4, learning_rate=1.0)
  # Adam's first step is the rate itself where the gradient is constant.
  optimizer = recipe.optimizer()
  x, sizes = {"x": np.ones(1, np.float32)}, []
  state = optimizer.init(x)
  for _ in range(10):
    updates, state = optimizer.update({"x": np.ones(1, np.float32)}, state, x)
    sizes.append(-float(updates["x"][0]))
  warm = [0.25, 0.5, 0.75, 1.0]
  cosine = [(1 + np.cos(np.pi * n / 7)) / 2 for n in range(1, 7)]
  np.testing.assert_allclose(sizes, warm + cosine, rtol=1e-4)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"steps": 0}, "steps is 0; expected at least 1"),
    ({"layers": 0}, "layers is 0; expected at least 1, or None"),
    ({"warmup_steps": 200}, "warmup_steps is 200; expected 0 to steps"),
    ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a positive"),
    ({"adam_b2": 1.0}, "adam_b2 is 1.0"),
    ({"weight_decay": -1.0}, "weight_decay is -1.0"),
  ],
)
def test_bad_recipes(change, message):
  with pytest.raises(ValueError, match=message):
    finetune.Recipe(**change)


def test_errors(whole, tmp_path):
  folder, _ = whole
  other = dataclasses.replace(RECIPE, seed=1)
  with pytest.raises(ValueError, match="its recipe.seed is 0, not 1. Choose"):
    _run(folder, other)
  with pytest.raises(ValueError, match="layers is 4: gemma-tiny has 3 layers"):
    _run(tmp_path / "deep", dataclasses.replace(RECIPE, layers=4))
  half = tiny_chats.lm(jax.numpy.bfloat16)
  with pytest.raises(ValueError, match="is in bfloat16: fine-tuning needs"):
    finetune.tune(half, tiny_chats.chats(), RECIPE, tmp_path)
  wild = dataclasses.replace(RECIPE, learning_rate=1e30)
  with pytest.raises(FloatingPointError, match="lower recipe.learning_rate"):
    _run(tmp_path / "wild", wild)
