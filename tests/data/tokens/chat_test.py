import numpy as np
import pytest
from tiny_gemma import ByteTokenizer, texts
from turn_tokenizer import CHAT, HOSTILE, TOKENIZER

from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.tokens import packing, token_files
from gemmascope_jax.data.tokens.chat import PREFIX, SUFFIX, ChatTemplate
from gemmascope_jax.gemma.weights import demo, gguf
from gemmascope_jax.gemma.weights.errors import WeightsNotFoundError


@pytest.fixture(scope="module")
def gemma_3():
  """The demo model's tokenizer."""
  try:
    path = demo.path()
  except WeightsNotFoundError as error:
    pytest.skip(str(error))
  return gguf.open_file(path).tokenizer()


def test_windows_spell_the_papers_markup():
  documents = [*texts(5), "x" * 200, ""]
  windows = packing.pack(documents, TOKENIZER, 64, chat=CHAT)
  markup = TOKENIZER.encode(PREFIX), TOKENIZER.encode(SUFFIX)
  room = 64 - 1 - len(markup[0]) - len(markup[1])
  expected = [
    (number, text.encode()[start : start + room])
    for number, text in enumerate(documents)
    for start in range(0, len(text.encode()), room)
  ]
  assert len(windows.tokens) == len(expected)
  for ids, owners, (number, piece) in zip(
    windows.tokens, windows.documents, expected, strict=True
  ):
    whole = [2, *markup[0], *(4 + byte for byte in piece), *markup[1]]
    assert ids.tolist() == whole + [0] * (64 - len(whole))
    first = 1 + len(markup[0])
    assert (owners[first : first + len(piece)] == number).all()
    assert (owners == number).sum() == len(piece)


def test_everything_counts_but_the_user_prefix_and_the_specials():
  policy = CHAT.policy(TokenPolicy.of(TOKENIZER))
  windows = packing.pack(texts(5), TOKENIZER, 64, chat=CHAT)
  kept = policy.keep(windows.tokens)
  first = 1 + len(CHAT.prefix)
  assert not kept[:, :first].any()
  np.testing.assert_array_equal(
    kept[:, first:], windows.tokens[:, first:] != TOKENIZER.pad_id
  )
  # And the model prefix does, which begins with the same token.
  start = windows.tokens == TOKENIZER.turns["<start_of_turn>"]
  assert (start.sum(axis=1) == 2).all()
  assert (kept[start].sum()) == len(windows.tokens)
  rows = int(kept[:3].sum())
  # It is the default policy of `pack` in a chat.
  three = packing.pack(texts(5), TOKENIZER, 64, chat=CHAT, rows=rows)
  assert len(three.tokens) == 3


def test_token_files_hold_the_same_windows(tmp_path):
  options = dict(chat=CHAT, rows=100)
  expected = packing.pack(texts(9), TOKENIZER, 64, **options)
  make = lambda **options: token_files.make(
    tmp_path, lambda: texts(9), TOKENIZER, 64, key={}, progress=False, **options
  )
  assert make(**options).fingerprint == expected.fingerprint
  assert make(**options).fingerprint == expected.fingerprint
  with pytest.raises(token_files.TokensMismatchError, match="its chat is"):
    make(rows=100)


def check_markup_is_text(tokenizer):
  chat = ChatTemplate.of(tokenizer)
  ids = chat.encode(tokenizer, HOSTILE)
  special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
  special |= {chat.prefix[0], chat.suffix[0]}
  assert special & set(tokenizer.encode(HOSTILE)) == special
  assert not special & set(ids)
  assert tokenizer.decode(ids) == HOSTILE
  (window,) = packing.pack([HOSTILE], tokenizer, 256, chat=chat).tokens
  policy = chat.policy(TokenPolicy.of(tokenizer))
  kept = policy.keep(window[None])[0]
  assert kept.sum() == len(ids) + len(chat.suffix)


def test_markup_in_a_document_is_text():
  check_markup_is_text(TOKENIZER)


def test_markup_of_gemma(gemma_3):
  chat = ChatTemplate.of(gemma_3)
  assert chat.prefix == (105, 2364, 107)
  assert chat.suffix == (106, 107, 105, 4368, 107)
  text = "A document.\n\nOf two paragraphs."
  ids = [*chat.prefix, *chat.encode(gemma_3, text), *chat.suffix]
  assert ids == gemma_3.encode(PREFIX + text + SUFFIX)
  check_markup_is_text(gemma_3)


def test_errors():
  with pytest.raises(ValueError, match="spells <start_of_turn> in 15 tokens"):
    ChatTemplate.of(ByteTokenizer())
  smallest = CHAT.smallest_window
  windows = packing.pack(["ab"], TOKENIZER, smallest, chat=CHAT)
  assert len(windows.tokens) == 2
  with pytest.raises(ValueError, match=f"expected at least {smallest}"):
    packing.pack(["ab"], TOKENIZER, smallest - 1, chat=CHAT)
