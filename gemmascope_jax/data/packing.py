"""Documents -> windows of tokens, each starting with BOS.

Packed: documents follow each other, a blank line between them, and are cut
where a window ends; nothing is lost and only the last window has padding.
Not packed: each window holds (part of) one document and is padded on the right.

Letters: N windows, T tokens in a window.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.documents import Document, content_key
from gemmascope_jax.data.policy import TokenPolicy

SEPARATOR = "\n\n"
NO_DOCUMENT = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """Tokens for the model, and where they came from.

  Attributes:
    tokens: int32 [N, T]; every row starts with BOS.
    documents: int32 [N, T]: number of the document that a token belongs to,
      counted from 0 in order of appearance; -1 at BOS, separators and padding.
    keys: uint64 [number of documents]: `Document.key` of each.
    sources: the distinct sources, in order of appearance.
  """

  tokens: np.ndarray
  documents: np.ndarray
  keys: np.ndarray
  sources: tuple[str, ...] = ()

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex SHA-256 of tokens, documents and keys."""
    return artifacts.sha256_arrays((self.tokens, self.documents, self.keys))

  def take(self, count: int) -> Windows:
    """The first `count` windows."""
    documents = self.documents[:count]
    known = int(documents.max(initial=NO_DOCUMENT)) + 1
    return dataclasses.replace(
      self,
      tokens=self.tokens[:count],
      documents=documents,
      keys=self.keys[:known],
    )


def pack(
  documents: Iterable[Document | str],
  tokenizer: Any,
  window: int,
  *,
  policy: TokenPolicy | None = None,
  rows: int | None = None,
  windows: int | None = None,
  packed: bool = True,
) -> Windows:
  """Makes windows until a budget is reached or the text ends.

  Args:
    documents: of `documents.mix`, or plain texts.
    tokenizer: with `encode(text) -> ids` (no BOS), `bos_id` and `pad_id`.
    window: T, BOS included.
    policy: which positions count towards `rows`; None: the tokenizer's.
    rows: stop once the windows hold this many kept positions; the last window
      is a full one.
    windows: stop once there are this many windows.
    packed: join documents; else every window holds one document, and one that
      is too long goes on in the next window.

  Returns:
    The windows.

  Raises:
    ValueError: a window below 2, no text, or less text than the budget asks.
  """
  if window < 2:
    raise ValueError(f"window {window}: expected at least 2, BOS and a token")
  for name, budget in (("rows", rows), ("windows", windows)):
    if budget is not None and budget < 1:
      raise ValueError(f"{name} {budget}: expected at least 1")
  policy = TokenPolicy.of(tokenizer) if policy is None else policy
  numbered = _Numbered(documents)
  runs = _runs(numbered, tokenizer, packed)
  tokens, owners, kept = [], [], 0
  for ids, owner in _windows(runs, tokenizer, window - 1, packed):
    tokens.append(ids)
    owners.append(owner)
    kept += int(policy.keep(ids[None]).sum())
    if (rows and kept >= rows) or (windows and len(tokens) >= windows):
      break
  if not tokens:
    raise ValueError("no text: the documents hold no token; check the sources")
  if rows and kept < rows:
    raise ValueError(_too_little(kept, "rows (kept positions)", rows))
  if windows and len(tokens) < windows:
    raise ValueError(_too_little(len(tokens), "windows", windows))
  return Windows(
    tokens=np.stack(tokens),
    documents=np.stack(owners),
    keys=np.array(numbered.keys, np.uint64),
    sources=tuple(numbered.sources),
  ).take(len(tokens))


def _too_little(found: int, what: str, asked: int) -> str:
  return (
    f"the text ends after {found:,} {what}, but {asked:,} were asked for: add"
    " sources or ask for less"
  )


class _Numbered:
  """Iterates over (number, text); remembers keys and sources."""

  def __init__(self, documents: Iterable[Document | str]):
    self._documents = documents
    self.keys: list[int] = []
    self.sources: dict[str, None] = {}

  def __iter__(self) -> Iterator[tuple[int, str]]:
    for document in self._documents:
      if isinstance(document, str):
        document = Document(document, "", content_key(document))
      self.keys.append(document.key)
      if document.source:
        self.sources[document.source] = None
      yield len(self.keys) - 1, document.text


def _runs(numbered, tokenizer, packed) -> Iterator[tuple[np.ndarray, int]]:
  """Runs of tokens with one owner: documents, and separators between them."""
  separator = np.array(tokenizer.encode(SEPARATOR), np.int32)
  first = True
  for number, text in numbered:
    ids = np.array(tokenizer.encode(text), np.int32)
    if not ids.size:
      continue
    if packed and not first:
      yield separator, NO_DOCUMENT
    first = False
    yield ids, number


def _windows(runs, tokenizer, room, packed):
  """(int32 [T], int32 [T]) each: BOS, `room` tokens, padding at the end."""

  def close(parts):
    ids = np.full(1 + room, tokenizer.pad_id, np.int32)
    owner = np.full(1 + room, NO_DOCUMENT, np.int32)
    ids[0] = tokenizer.bos_id
    start = 1
    for part, number in parts:
      ids[start : start + len(part)] = part
      owner[start : start + len(part)] = number
      start += len(part)
    return ids, owner

  parts, free = [], room
  for ids, number in runs:
    while ids.size:
      parts.append((ids[:free], number))
      taken = len(parts[-1][0])
      ids, free = ids[taken:], free - taken
      if not free or not (packed or ids.size):
        yield close(parts)
        parts, free = [], room
  if parts:
    yield close(parts)
