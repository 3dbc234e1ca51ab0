"""Documents: which split they belong to, and in which order they come.

The split of a document follows from its text alone, so train and held-out
text never share a document, whatever is added later, and evaluation never eats
training data. A text that occurs twice, in any source, is seen once.

Order: each source is read in blocks of a bounded number of characters, each
block is put in the order of a seeded hash of the texts, and sources take turns
so that each has given its share of the characters. That needs no more memory
than a block a source, works for endless streams, and depends on the seed and
the texts only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gemmascope_jax.data.text import texts
from gemmascope_jax.data.text.seen import Seen

SPLITS = ("train", "held_out")
HELD_OUT = 0.05  # share of documents kept for evaluation
BLOCK_CHARACTERS = 64 << 20


class NoTextError(ValueError):
  """The sources hold no document of the split."""


@dataclasses.dataclass(frozen=True)
class Document:
  """One text.

  Attributes:
    text: the text, or one piece of it (see `mix`).
    source: where it came from.
    key: 64-bit hash of the content of the whole document.
  """

  text: str
  source: str
  key: int


def content_key(text: str) -> int:
  """First 64 bits of the SHA-256 of a text."""
  digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
  return int.from_bytes(digest[:8], "big")


def split_of(text: str, held_out: float = HELD_OUT) -> str:
  """The split of a text: "train" or "held_out", by its content alone.

  Args:
    text: a whole document.
    held_out: share of documents that are held out. A larger share holds out
      the same documents and more.
  """
  return _split(content_key(text), held_out)


def _split(key: int, held_out: float) -> str:
  return "held_out" if key < held_out * 2**64 else "train"


def mix(
  sources: Sequence[str | tuple[str, Iterable[str | dict[str, Any]]]],
  split: str = "train",
  *,
  folder: str | os.PathLike | None = None,
  held_out: float = HELD_OUT,
  seed: int = 0,
  weights: Sequence[float] | None = None,
  piece_characters: int | None = None,
  block_characters: int = BLOCK_CHARACTERS,
  max_document_bytes: int = texts.MAX_DOCUMENT_BYTES,
) -> Iterator[Document]:
  """Documents of one split of several sources, mixed by characters.

  Memory: a block of text for each source, and 8 bytes (16 at times) for each
  document seen; see `seen.Seen`.

  Args:
    sources: names that `texts.read` knows, or pairs (name, rows), where rows is
      any iterable of texts or of rows with a "text"; see `texts.from_rows`. All
      are read as they are needed.
    split: "train" or "held_out".
    folder: where packaged sources are installed.
    held_out: share of the documents that are held out.
    seed: of the order within a block; not of the split.
    weights: share of the characters of each source; None: equal. A source that
      ends leaves the others to go on.
    piece_characters: documents longer than this are cut, at paragraphs where
      there are any, after the split was decided. Long books and speeches then
      mix with the rest instead of filling an evaluation set alone.
    block_characters: how much of a source is read before it is ordered.
    max_document_bytes: a larger document is refused, before it is read where
      that can be.

  Returns:
    An iterator over documents. Texts of white space only are left out.

  Raises:
    ValueError: an unknown split, weights that don't match, or, as the documents
      are asked for, no text at all or a document that is too large.
  """
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
  if not sources:
    raise ValueError("no text: the list of sources is empty")
  if not 0 <= held_out <= 1:
    raise ValueError(f"held_out {held_out}: expected a share from 0 to 1")
  weights = [1.0] * len(sources) if weights is None else list(weights)
  if len(weights) != len(sources) or min(weights) <= 0:
    raise ValueError(
      f"weights {weights}: expected {len(sources)} positive numbers, one for"
      " each source"
    )
  named = [
    (source, texts.read(source, folder, max_document_bytes))
    if isinstance(source, str)
    else (
      source[0],
      texts.from_rows(*source, max_document_bytes=max_document_bytes),
    )
    for source in sources
  ]
  seen = Seen()
  streams = [
    _ordered(
      _chosen(name, read, split, held_out, seen),
      seed,
      block_characters,
      piece_characters,
    )
    for name, read in named
  ]
  names = [name for name, _ in named]
  return _take_turns(names, streams, weights, split)


def _chosen(name, read, split, held_out, seen) -> Iterator[Document]:
  """The documents of one source that are in the split, each text once."""
  for text in read:
    if not text.strip():
      continue
    key = content_key(text)
    if _split(key, held_out) == split and seen.add(key):
      yield Document(text, name, key)


def _ordered(documents, seed, block, piece) -> Iterator[Document]:
  """Each block of pieces in the order of a seeded hash."""
  held, size = [], 0
  for document in documents:
    for part in cut(document, piece):
      held.append(part)
      size += len(part.text)
      if size >= block:
        yield from sorted(held, key=lambda part: _order(part, seed))
        held, size = [], 0
  yield from sorted(held, key=lambda part: _order(part, seed))


def _order(document: Document, seed: int) -> bytes:
  text = document.text.encode("utf-8", "surrogatepass")
  salt = str(seed).encode()
  return hashlib.blake2b(text, digest_size=16, key=salt).digest()


def cut(document: Document, characters: int | None) -> list[Document]:
  """Pieces of about `characters`, ending at paragraphs where there are any.

  Joined by blank lines (or by nothing, where a paragraph itself was cut) they
  are the text again.

  Args:
    document: to be cut.
    characters: a piece is at most this long; None: don't cut.

  Returns:
    The document itself if it is short enough, else its pieces, which keep its
    key.
  """
  if characters is not None and characters < 1:
    raise ValueError(
      f"piece_characters {characters}: expected at least 1, or None for no cut"
    )
  if characters is None or len(document.text) <= characters:
    return [document]
  # By places in the text: to copy what is left, or what there is so far, each
  # time would be quadratic.
  text, pieces = document.text, []
  start = end = 0  # of the piece so far
  at = 0  # where the paragraph begins
  while at <= len(text):
    stop = text.find("\n\n", at)
    stop = len(text) if stop < 0 else stop
    following = stop + 2
    first = at if start == end else start
    if stop - first <= characters:
      start, end = first, stop
    else:
      if start < end:
        pieces.append(text[start:end])
      while stop - at > characters:
        pieces.append(text[at : at + characters])
        at += characters
      start, end = at, stop
    at = following
  pieces.append(text[start:end])
  return [
    dataclasses.replace(document, text=piece)
    for piece in pieces
    if piece.strip()
  ]


def _take_turns(names, streams, weights, split) -> Iterator[Document]:
  """Always the source that is furthest behind its share; ties by order."""
  given = [0.0] * len(streams)
  active = list(range(len(streams)))
  while active:
    turn = min(active, key=lambda i: (given[i] / weights[i], i))
    document = next(streams[turn], None)
    if document is None:
      active.remove(turn)
      continue
    given[turn] += len(document.text)
    yield document
  if not any(given):
    raise NoTextError(
      f"no text: {', '.join(names)} hold no document of the split {split!r}"
      " (documents are split by a hash of their content); add text or sources"
    )
