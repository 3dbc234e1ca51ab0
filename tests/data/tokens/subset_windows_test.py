import json

import numpy as np
import pytest
import tiny_gemma

from gemmascope_jax.data.text import documents, subsets
from gemmascope_jax.data.tokens import subset_windows

TOKENIZER = tiny_gemma.ByteTokenizer()
COUNTS = {"Github": 30, "EuroParl": 60, "ArXiv": 3}


@pytest.fixture
def corpus(tmp_path):
  path = tmp_path / "pile.jsonl"
  rows = [
    {"text": f"{name}: text number {i}", "meta": {"pile_set_name": name}}
    for i in range(60)
    for name, count in COUNTS.items()
    if i < count
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return subsets.pile(
    f"file:{path}", ("github", "europarl", "arxiv", "freelaw")
  )


def _make(corpus, **options):
  options = dict(sequences=8, window=32, progress=False) | options
  return subset_windows.make(corpus, TOKENIZER, **options)


def _texts(windows):
  """The documents in windows, put together from their tokens."""
  found = {}
  for row, owners in zip(windows.tokens, windows.documents, strict=True):
    for token, owner in zip(row, owners, strict=True):
      found.setdefault(int(owner), []).append(int(token))
  return [TOKENIZER.decode(ids) for owner, ids in found.items() if owner >= 0]


def test_subsets_have_equal_windows_of_their_own_text(corpus):
  made = _make(corpus)
  assert set(made.windows) == {"github", "europarl"}
  for name, windows in made.windows.items():
    assert windows.tokens.shape == (8, 32) and windows.tokens.dtype == np.int32
    assert (windows.tokens[:, 0] == TOKENIZER.bos_id).all()
    assert not (windows.tokens == TOKENIZER.pad_id).any()
    whole = _texts(windows)[:-1]  # the last is cut where the windows end
    label = subsets.PILE[name]
    assert whole == [f"{label}: text number {i}" for i in range(len(whole))]
    assert len(whole) > 5


def test_too_little_text_is_reported_with_its_count(corpus):
  made = _make(corpus)
  # 3 documents of 21 bytes and 2 blank lines: 65 tokens, 31 a window.
  assert made.short == {"arxiv": 2, "freelaw": 0}
  assert "makes 2 windows of 32 tokens, of 8" in made.missing["arxiv"]
  report = made.to_dict()
  assert json.loads(json.dumps(report)) == report
  assert report["github"]["sequences"] == 8
  assert "missing" not in report["github"] and report["arxiv"]["missing"]


def test_the_longest_that_fits_is_found_exactly(corpus):
  assert "arxiv" in _make(corpus, sequences=2).windows
  assert "arxiv" not in _make(corpus, sequences=3).windows


def test_documents_of_the_store_are_passed_over(corpus):
  keys = [documents.content_key(f"Github: text number {i}") for i in (0, 1, 5)]
  made = _make(corpus, exclude_keys=np.array(keys, np.uint64))
  assert made.excluded == {"github": 3, "europarl": 0, "arxiv": 0, "freelaw": 0}
  found = _texts(made.windows["github"])
  assert found[0] == "Github: text number 2"
  assert not {f"Github: text number {i}" for i in (0, 1, 5)} & set(found)
  assert not set(made.windows["github"].keys.tolist()) & set(keys)
  with pytest.raises(ValueError, match="exclude_keys of dtype int64: expected"):
    _make(corpus, exclude_keys=np.array([1, 2]))


def test_sources_that_were_trained_on_give_held_out_documents_only(corpus):
  source = corpus.subsets["github"].sources[0]
  corpus = subsets.pile(source, tuple(corpus.subsets), held_out=0.5)
  made = _make(corpus, sequences=5, trained_on=(source,))
  whole = _texts(made.windows["europarl"])[:-1]
  assert len(whole) > 3
  assert {documents.split_of(text, 0.5) for text in whole} == {"held_out"}


def test_a_long_document_gives_one_piece_from_anywhere_in_it(tmp_path):
  path = tmp_path / "pile.jsonl"
  pieces = lambda i: [f"{i:02d}{letter * 38}" for letter in "abc"]
  rows = [
    {"text": "\n\n".join(pieces(i)), "meta": {"pile_set_name": "Github"}}
    for i in range(30)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  corpus = subsets.pile(f"file:{path}", ("github",))
  made = _make(corpus, sequences=30, document_characters=40)
  found = _texts(made.windows["github"])[:-1]
  assert all(text in pieces(i) for i, text in enumerate(found))
  assert {text[-1] for text in found} == set("abc") and len(found) > 20


def test_a_text_is_taken_once(tmp_path):
  path = tmp_path / "pile.jsonl"
  row = lambda text, name: json.dumps(
    {"text": text, "meta": {"pile_set_name": name}}
  )
  lines = [row("the same text", n) for n in ("Github", "Github", "ArXiv")]
  path.write_text(
    "\n".join([*lines, row("b" * 40, "Github"), row("c" * 40, "ArXiv")])
  )
  corpus = subsets.pile(f"file:{path}", ("github", "arxiv"))
  made = _make(corpus, sequences=1, window=16)
  assert made.repeated == {"github": 1, "arxiv": 1}
  assert TOKENIZER.decode(made.windows["arxiv"].tokens[0]) == "c" * 15


def test_an_endless_corpus_stops(corpus):
  made = _make(corpus, sequences=1, max_documents=5)
  assert made.windows and "5 documents were looked at" in made.missing["arxiv"]


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(sequences=0), "windows 0: expected at least 1"),
    (dict(window=1), "window 1: expected at least 2"),
    (
      dict(sequences=999),
      "no subset has text for 999 windows .*arxiv: its text",
    ),
  ],
)
def test_what_can_not_be(corpus, options, message):
  with pytest.raises(ValueError, match=message):
    _make(corpus, **options)
