import jax
import numpy as np
import pytest
import tiny_chats

from gemmascope_jax import gemma
from gemmascope_jax.data.tokens.conversations import Conversations
from gemmascope_jax.finetune import scoring


def _ragged():
  """Conversations of different lengths and turns."""
  rng = np.random.default_rng(0)
  found = tiny_chats.chats(7)
  tokens, counted = found.tokens.copy(), found.counted.copy()
  for row in range(7):
    end = rng.integers(22, tokens.shape[1])
    tokens[row, end:], counted[row, end:] = found.pad_id, False
  return Conversations(tokens, counted, found.pad_id)


@pytest.mark.parametrize("size", [3, 8])
def test_losses_are_those_of_the_softmax_in_float64(size):
  lm, chats = tiny_chats.lm(), _ragged()
  mask = chats.tokens != chats.pad_id
  logits = gemma.forward(lm.config, lm.params, chats.tokens, mask=mask).logits
  logits = np.asarray(logits, np.float64)
  top = logits.max(-1, keepdims=True)
  total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
  expected = np.zeros(7)
  for row, column in zip(*np.nonzero(chats.counted), strict=True):
    target = chats.tokens[row, column]
    expected[row] += total[row, column - 1] - logits[row, column - 1, target]
  found = scoring.score(lm, chats, size=size, progress=False)
  np.testing.assert_allclose(found.total, expected, rtol=1e-5)
  np.testing.assert_array_equal(found.count, chats.counted.sum(axis=1))
  assert found.loss().n == 7
  assert found.minus(found).mean == 0


def test_a_batch_names_the_tokens_of_the_models_turns():
  lm, chats = tiny_chats.lm(), _ragged()
  given = scoring.batch(chats, range(7), scoring.largest(chats, 7))
  assert given.weights.sum() == chats.counted.sum()
  # The target of each position that counts is a token of the model's turn.
  real = np.flatnonzero(given.weights)
  at = given.rows[real], given.columns[real] + 1
  assert chats.counted[at].all()
  assert len(set(zip(*(x.tolist() for x in at), strict=True))) == len(real)
  text = str(
    jax.make_jaxpr(lambda p: scoring.losses(lm.config, p, given))(lm.params)
  )
  assert f"{lm.config.vocab_size},7,{chats.tokens.shape[1]}]" not in text


def test_errors():
  with pytest.raises(ValueError, match="size is 0; expected at least 1"):
    scoring.score(tiny_chats.lm(), tiny_chats.chats(), size=0)
