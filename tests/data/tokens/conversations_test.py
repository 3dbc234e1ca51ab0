import numpy as np
import pytest
from turn_tokenizer import CHAT, HOSTILE, TOKENIZER

from gemmascope_jax.data.tokens import conversations
from gemmascope_jax.data.tokens.conversations import MODEL, USER, Turn

SPELLED = (
  "<start_of_turn>user\nhi\nthere<end_of_turn>\n"
  "<start_of_turn>model\nhello<end_of_turn>\n"
  "<start_of_turn>user\nso?<end_of_turn>"
)
DOCUMENT = "A: hi\nA: there \nB: hello\nA: so?"


def test_turns_of_a_dialogue():
  turns = [Turn(USER, "hi\nthere"), Turn(MODEL, "hello"), Turn(USER, "so?")]
  assert conversations.parse(DOCUMENT) == turns
  other = "B: hi\nthere\nA:  hello \nA: \nB: so?"
  assert conversations.parse(other) == turns
  assert conversations.parse("A: \nB: x\nA: y") == [
    Turn(USER, "x"),
    Turn(MODEL, "y"),
  ]


def test_markup_is_gemmas_and_the_models_turns_count():
  turns = conversations.parse(DOCUMENT)
  ids, said = conversations.encode(CHAT, TOKENIZER, turns)
  assert ids == [TOKENIZER.bos_id, *TOKENIZER.encode(SPELLED)]
  counted = [i for i, flag in zip(ids, said, strict=True) if flag]
  assert counted == TOKENIZER.encode("hello<end_of_turn>")


def test_markup_in_a_text_is_text():
  turns = [Turn(USER, HOSTILE), Turn(MODEL, HOSTILE)]
  ids, said = conversations.encode(CHAT, TOKENIZER, turns)
  assert ids.count(CHAT.end) == 2 and ids.count(CHAT.prefix[0]) == 2
  assert TOKENIZER.decode(np.array(ids)[said][:-1]) == HOSTILE


def test_windows_are_cut_and_padded():
  silent = "A: only one speaks"
  late = f"A: {'x' * 60}\nB: too late"
  texts = iter([silent, DOCUMENT, late, DOCUMENT + "\nB: " + "y" * 60, 0])
  found = conversations.windows(texts, CHAT, TOKENIZER, 60, 2)
  ids, said = conversations.encode(
    CHAT, TOKENIZER, conversations.parse(DOCUMENT)
  )
  whole = len(ids)
  assert found.tokens.shape == (2, 60) and found.tokens.dtype == np.int32
  assert found.tokens[0, :whole].tolist() == ids
  assert (found.tokens[0, whole:] == TOKENIZER.pad_id).all()
  assert found.counted[0].tolist() == said + [False] * (60 - whole)
  assert found.counted[1].sum() > found.counted[0].sum()
  assert next(texts) == 0  # read no further than needed
  again = conversations.windows([DOCUMENT], CHAT, TOKENIZER, 60, 1)
  assert again.fingerprint != found.fingerprint


def test_errors():
  with pytest.raises(ValueError, match="no dialogue: it begins with 'Once"):
    conversations.parse("Once upon a time")
  with pytest.raises(ValueError, match="roles model, user: expected user and"):
    conversations.encode(CHAT, TOKENIZER, [Turn(MODEL, "a"), Turn(USER, "b")])
  with pytest.raises(ValueError, match="within 60 tokens: give other dialogue"):
    conversations.windows(["A: hi"], CHAT, TOKENIZER, 60, 1)
