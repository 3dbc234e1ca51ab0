import collections
import hashlib
import random
import time

import pytest
from tiny_gemma import texts

from gemmascope_jax.data.text import documents


def read(split, sources, **options):
  return list(documents.mix(sources, split, **options))


def test_splits_are_disjoint_complete_and_seen_once():
  many = texts(400)
  sources = [("a", many + many[:50]), ("b", many[100:200] + texts(50, 1))]
  train = {d.text for d in read("train", sources, held_out=0.3)}
  held_out = {d.text for d in read("held_out", sources, held_out=0.3)}
  assert not train & held_out
  assert train | held_out == {*many, *texts(50, 1)}
  for split in documents.SPLITS:
    counts = collections.Counter(
      d.text for d in read(split, sources, held_out=0.3)
    )
    assert set(counts.values()) == {1}
  assert 0.2 < len(held_out) / 450 < 0.4


def test_split_depends_on_the_text_alone():
  few, many = texts(50), texts(50) + texts(300, 5)
  for split in documents.SPLITS:
    small = {d.text for d in read(split, [("a", few)], held_out=0.5)}
    large = {
      d.text
      for d in read(split, [("z", []), ("b", many)], held_out=0.5, seed=3)
    }
    assert small == large & set(few)


def test_split_is_the_content_hash():
  # Golden on purpose: data that was held out must stay held out for ever.
  text = "The same text."
  first = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
  assert documents.content_key(text) == first
  share = first / 2**64
  assert documents.split_of(text, share + 1e-9) == "held_out"
  assert documents.split_of(text, share - 1e-9) == "train"
  held = {t for t in texts(500) if documents.split_of(t) == "held_out"}
  more = {t for t in texts(500) if documents.split_of(t, 0.2) == "held_out"}
  assert 5 <= len(held) <= 50 and held < more


def test_order_is_seeded_and_mixes_by_characters():
  long, short = ["l" * 1000 + str(i) for i in range(20)], texts(900)
  first = read("train", [("long", long), ("short", short)], held_out=0.0)
  again = read("train", [("long", long), ("short", short)], held_out=0.0)
  other = read("train", [("long", long), ("short", short)], held_out=0, seed=1)
  assert first == again
  assert [d.text for d in first] != [d.text for d in other]
  given = collections.Counter()
  for document in first[:300]:
    given[document.source] += len(document.text)
  assert abs(given["long"] - given["short"]) <= 1100
  shorts = [d.text for d in first if d.source == "short"]
  assert shorts != short and sorted(shorts) == sorted(short)


def test_weights():
  sources = [("a", texts(400)), ("b", texts(400, 1))]
  given = collections.Counter()
  for document in read("train", sources, held_out=0.0, weights=[3, 1])[:300]:
    given[document.source] += len(document.text)
  assert given["a"] / given["b"] == pytest.approx(3, rel=0.1)


def test_blocks_bound_what_is_read_ahead():
  read_ahead = []

  def endless():
    for number in range(10**9):
      read_ahead.append(number)
      yield f"document {number} {'x' * 80}"

  stream = documents.mix([("s", endless())], held_out=0, block_characters=1000)
  got = [next(stream).text for _ in range(25)]
  assert len(read_ahead) <= 50
  assert sorted(got[:10], key=lambda t: int(t.split()[1])) != got[:10]


def test_sources_may_be_any_rows_up_to_a_size():
  rows = ({"text": text} for text in texts(20))
  assert sorted(d.text for d in read("train", [("s", rows)], held_out=0)) == (
    sorted(texts(20))
  )
  with pytest.raises(ValueError, match="s, row 2 is one document of 5 charact"):
    read("train", [("s", ["abcd", "abcde"])], max_document_bytes=4)


def test_files_are_refused_beyond_the_size(tmp_path):
  (tmp_path / "a.txt").write_text("abcde")
  source = f"file:{tmp_path}/a.txt"
  assert len(read("train", [source], held_out=0)) == 1
  with pytest.raises(ValueError, match="a.txt is one document of 5 bytes"):
    read("train", [source], held_out=0, max_document_bytes=4)


def test_pieces_keep_the_text_and_the_split_of_the_whole():
  book = "\n\n".join(["a paragraph " * n for n in range(1, 30)] + ["x" * 999])
  whole = documents.Document(book, "s", documents.content_key(book))
  pieces = documents.cut(whole, 300)
  assert max(len(p.text) for p in pieces) <= 300
  assert {p.key for p in pieces} == {whole.key}
  bare = lambda text: "".join(text.split())
  assert bare("".join(p.text for p in pieces)) == bare(book)
  assert documents.cut(whole, None) == [whole]
  mixed = read("train", [("s", [book])], held_out=0, piece_characters=300)
  assert sorted(p.text for p in mixed) == sorted(p.text for p in pieces)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(sources=[("a", [])]), "no text: a hold no document of .*'train'"),
    (dict(sources=[("a", [" \n"])]), "no text"),
    (dict(sources=[]), "no text: the list of sources is empty"),
    (dict(sources=[("a", [])], split="test"), "split 'test': expected one of"),
    (dict(sources=[("a", [])], weights=[1, 2]), "weights .*expected 1 "),
    (dict(sources=[("a", [])], held_out=2), "held_out 2: expected a share"),
  ],
)
def test_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    list(documents.mix(**arguments))


def cut_by_joining(text, characters):
  """The oracle: paragraphs are joined while they fit."""
  pieces, current = [], ""
  for paragraph in text.split("\n\n"):
    joined = f"{current}\n\n{paragraph}" if current else paragraph
    if len(joined) <= characters:
      current = joined
      continue
    if current:
      pieces.append(current)
    while len(paragraph) > characters:
      pieces.append(paragraph[:characters])
      paragraph = paragraph[characters:]
    current = paragraph
  return [piece for piece in [*pieces, current] if piece.strip()]


def test_cuts_of_texts_with_all_kinds_of_line_ends():
  random_ = random.Random(0)
  for _ in range(3000):
    text = "".join(random_.choices("ab\n", k=random_.randrange(40)))
    characters = random_.randrange(1, 12)
    whole = documents.Document(text, "s", 1)
    if len(text) > characters:
      pieces = [piece.text for piece in documents.cut(whole, characters)]
      assert pieces == cut_by_joining(text, characters)


@pytest.mark.parametrize("separator", ["", "\n\n"])
def test_long_texts_are_cut_in_linear_time(separator):
  text = separator.join(["ab"] * (10**6 if separator else 10**7))
  # Quadratic ways took over 10 s, with many pieces or with long ones.
  for characters in (1000, 1 << 20):
    start = time.process_time()
    pieces = documents.cut(documents.Document(text, "s", 1), characters)
    assert time.process_time() - start < 5
    assert separator.join(piece.text for piece in pieces) == text
