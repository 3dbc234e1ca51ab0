import collections

import numpy as np
import pytest
from tiny_gemma import POLICY, ByteTokenizer, texts

from gemmascope_jax.data.text import documents
from gemmascope_jax.data.tokens import packing

TOKENIZER = ByteTokenizer()
DOCUMENTS = [*texts(20), "", "x" * 15, "y" * 14, "one\n\ntwo", "z" * 100]


def unpack(windows):
  """The stream of tokens and owners without BOS and padding."""
  real = windows.tokens[:, 1:] != TOKENIZER.pad_id
  return windows.tokens[:, 1:][real], windows.documents[:, 1:][real]


def test_packed_windows_hold_every_token_in_order():
  windows = packing.pack(DOCUMENTS, TOKENIZER, 16)
  tokens, owners = unpack(windows)
  expected = [text for text in DOCUMENTS if text]
  assert TOKENIZER.decode(tokens) == "\n\n".join(expected)
  numbers = [i for i, text in enumerate(DOCUMENTS) if text]
  for number, text in zip(numbers, expected, strict=True):
    assert TOKENIZER.decode(tokens[owners == number]) == text
  assert set(tokens[owners == -1]) == {TOKENIZER.blank_id}
  assert windows.keys[numbers[0]] == documents.content_key(expected[0])


def test_packed_windows_are_full_but_the_last():
  windows = packing.pack(DOCUMENTS, TOKENIZER, 16)
  assert windows.tokens.dtype == windows.documents.dtype == np.int32
  assert (windows.tokens[:, 0] == TOKENIZER.bos_id).all()
  assert (windows.documents[:, 0] == -1).all()
  assert (windows.tokens[:-1] != TOKENIZER.pad_id).all()
  assert windows.tokens.shape == windows.documents.shape


def test_unpacked_windows_hold_one_document_each():
  windows = packing.pack(DOCUMENTS, TOKENIZER, 16, packed=False)
  assert (windows.tokens[:, 0] == TOKENIZER.bos_id).all()
  found = collections.defaultdict(list)
  for ids, owners in zip(windows.tokens, windows.documents, strict=True):
    real = ids != TOKENIZER.pad_id
    assert not real[np.argmin(real) :].any() or real.all()  # padding is right
    (number,) = set(owners[1:][real[1:]])
    found[number].extend(ids[real][1:])
  text = {number: TOKENIZER.decode(ids) for number, ids in found.items()}
  assert text == {i: text for i, text in enumerate(DOCUMENTS) if text}
  # 15 tokens fill a window of 16 and make no empty one.
  assert (windows.documents == DOCUMENTS.index("x" * 15)).any(axis=1).sum() == 1


@pytest.mark.parametrize("rows", [1, 14, 15, 16, 100])
def test_rows_stop_at_the_first_window_that_reaches_them(rows):
  windows = packing.pack(DOCUMENTS, TOKENIZER, 16, rows=rows)
  kept = POLICY.keep(windows.tokens).sum(axis=1)
  assert kept[:-1].sum() < rows <= kept.sum()


def test_windows_budget_and_take():
  five = packing.pack(DOCUMENTS, TOKENIZER, 16, windows=5)
  assert five.tokens.shape == (5, 16)
  assert len(five.keys) == five.documents.max() + 1
  whole = packing.pack(DOCUMENTS, TOKENIZER, 16)
  assert whole.take(5).fingerprint == five.fingerprint
  assert whole.fingerprint != five.fingerprint


def test_of_two_budgets_the_first_that_is_reached_counts():
  pack = lambda **options: packing.pack(DOCUMENTS, TOKENIZER, 16, **options)
  assert len(pack(windows=5, rows=10**6).tokens) == 5
  assert pack(windows=10**6, rows=40).fingerprint == pack(rows=40).fingerprint


def test_sources_are_remembered():
  mixed = documents.mix(
    [("a", texts(5)), ("b", texts(5, 1))], held_out=0.0, seed=1
  )
  assert set(packing.pack(mixed, TOKENIZER, 16).sources) == {"a", "b"}


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(window=1), "window 1: expected at least 2"),
    (dict(rows=0), "rows 0: expected at least 1"),
    (dict(rows=10**6), r"ends after [\d,]+ rows .* 1,000,000 were asked"),
    (dict(rows=10**6), r"ask for less \(harvest.rows, for the binaries\)"),
    (dict(windows=10**6), r"ends after [\d,]+ windows, but 1,000,000"),
    (dict(windows=10**6), r"less \(evaluate.sequences times evaluate.stride"),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    packing.pack(DOCUMENTS, TOKENIZER, **{"window": 16, **options})


def test_no_text():
  with pytest.raises(ValueError, match="no text"):
    packing.pack(["", ""], TOKENIZER, 16)
