"""Documents -> windows of tokens, each starting with BOS.

Packed: documents follow each other, a blank line between them, and are cut
where a window ends; nothing is lost and only the last window has padding.
Not packed: each window holds (part of) one document and is padded on the right.
In a chat: the same, with a chat's markup around that (see `chat`).

Letters: N windows, T tokens in a window.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.text.documents import Document, content_key
from gemmascope_jax.data.tokens.chat import ChatTemplate

SEPARATOR = "\n\n"
NO_DOCUMENT = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """Tokens for the model, and where they came from.

  Attributes:
    tokens: int32 [N, T]; every row starts with BOS.
    documents: int32 [N, T]: number of the document that a token belongs to,
      counted from 0 in order of appearance; -1 at BOS, separators, padding and
      chat markup.
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
    """The first `count` windows, with the keys of their documents only."""
    documents = self.documents[:count]
    known = int(documents.max(initial=NO_DOCUMENT)) + 1
    if count >= len(self.tokens) and known == len(self.keys):
      return self  # and keeps its fingerprint
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
  chat: ChatTemplate | None = None,
) -> Windows:
  """Makes windows in memory until a budget is reached or the text ends.

  `token_files.make` does the same on disk, for more text than memory holds.

  Args:
    documents: of `documents.mix`, or plain texts.
    tokenizer: with `encode(text) -> ids` (no BOS), `bos_id` and `pad_id`.
    window: T, BOS included.
    policy: which positions count towards `rows`; None: the tokenizer's, and
      that of `chat`.
    rows: stop once the windows hold this many kept positions; the last window
      is a full one.
    windows: stop once there are this many windows; with `rows`, whichever comes
      first.
    packed: join documents; else every window holds one document, and one that
      is too long goes on in the next window.
    chat: the markup around each document (or each piece of one that is too
      long), which then has a window of its own, whatever `packed` says.

  Returns:
    The windows.

  Raises:
    ValueError: a window that is too small, no text, or less text than the
      budget asks for.
  """
  check(window, rows, windows, chat)
  if policy is None:
    policy = default_policy(tokenizer, chat)
  made = pack_until(
    documents,
    tokenizer,
    window,
    policy=policy,
    rows=rows,
    windows=windows,
    packed=packed,
    chat=chat,
  )
  require_budget(len(made.tokens), made.rows, rows, windows)
  known = int(made.documents.max()) + 1
  return Windows(
    tokens=made.tokens,
    documents=made.documents,
    keys=made.keys[:known],
    sources=tuple(s for s, first in made.sources.items() if first < known),
  )


def check(
  window: int,
  rows: int | None,
  windows: int | None,
  chat: ChatTemplate | None,
) -> None:
  """Raises `ValueError` for a window or a budget that makes no sense."""
  if window < 2:
    raise ValueError(f"window {window}: expected at least 2, BOS and a token")
  if chat is not None and window < chat.smallest_window:
    raise ValueError(
      f"window {window}: the chat markup alone takes"
      f" {chat.smallest_window - 1} tokens, so expected at least"
      f" {chat.smallest_window}"
    )
  for name, budget in (("rows", rows), ("windows", windows)):
    if budget is not None and budget < 1:
      raise ValueError(f"{name} {budget}: expected at least 1")


def default_policy(tokenizer: Any, chat: ChatTemplate | None) -> TokenPolicy:
  """The paper's policy for plain documents, or for documents in a chat."""
  policy = TokenPolicy.of(tokenizer)
  return policy if chat is None else chat.policy(policy)


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """What `pack_until` made; the fields of `Windows`, but as they were found.

  Attributes:
    tokens: int32 [N, T].
    documents: int32 [N, T].
    keys: uint64, of all documents that were looked at; the last ones may have
      no token in the windows.
    sources: the number of the first document of each source.
    rows: kept positions in the windows.
  """

  tokens: np.ndarray
  documents: np.ndarray
  keys: np.ndarray
  sources: dict[str, int]
  rows: int


def pack_until(
  documents: Iterable[Document | str],
  tokenizer: Any,
  window: int,
  *,
  policy: TokenPolicy,
  rows: int | None,
  windows: int | None,
  packed: bool,
  chat: ChatTemplate | None,
) -> Packed:
  """`pack` of arguments that were checked; too little text is no error."""
  numbered = _Numbered(documents)
  tokens, owners, kept = [], [], 0
  if chat is None:
    runs = _runs(numbered, tokenizer, packed)
    made = _windows(runs, tokenizer, window - 1, packed)
  else:
    made = _chat_windows(numbered, tokenizer, window, chat)
  for ids, owner in made:
    tokens.append(ids)
    owners.append(owner)
    kept += int(policy.keep(ids[None]).sum())
    if (rows and kept >= rows) or (windows and len(tokens) >= windows):
      break
  shape = (len(tokens), window)
  return Packed(
    tokens=np.array(tokens, np.int32).reshape(shape),
    documents=np.array(owners, np.int32).reshape(shape),
    keys=np.array(numbered.keys, np.uint64),
    sources=numbered.sources,
    rows=kept,
  )


def require_budget(
  found: int, kept: int, rows: int | None, windows: int | None
) -> None:
  """Raises `ValueError` if a whole text gave too little.

  Args:
    found: its windows.
    kept: kept positions in them.
    rows: how many were wanted; None: any number.
    windows: the same; either of the two is enough.
  """
  if not found:
    raise ValueError("no text: the documents hold no token; check the sources")
  if (rows and kept >= rows) or (windows and found >= windows):
    return
  if rows and kept < rows:
    what = "rows (kept positions)"
    raise ValueError(_too_little(kept, what, rows, "harvest.rows"))
  if windows and found < windows:
    setting = "evaluate.sequences times evaluate.stride"
    raise ValueError(_too_little(found, "windows", windows, setting))


def _too_little(found: int, what: str, asked: int, setting: str) -> str:
  return (
    f"the text ends after {found:,} {what}, but {asked:,} were asked for: add"
    f" sources or ask for less ({setting}, for the binaries)"
  )


class _Numbered:
  """Iterates over (number, text); remembers keys and sources."""

  def __init__(self, documents: Iterable[Document | str]):
    self._documents = documents
    self.keys: list[int] = []
    self.sources: dict[str, int] = {}

  def __iter__(self) -> Iterator[tuple[int, str]]:
    for document in self._documents:
      if isinstance(document, str):
        document = Document(document, "", content_key(document))
      self.keys.append(document.key)
      number = len(self.keys) - 1
      if document.source:
        self.sources.setdefault(document.source, number)
      yield number, document.text


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
  parts, free = [], room
  for ids, number in runs:
    while ids.size:
      parts.append((ids[:free], number))
      taken = len(parts[-1][0])
      ids, free = ids[taken:], free - taken
      if not free or not (packed or ids.size):
        yield _close(parts, tokenizer, 1 + room)
        parts, free = [], room
  if parts:
    yield _close(parts, tokenizer, 1 + room)


def _chat_windows(numbered, tokenizer, window, chat):
  """As `_windows`: the markup around one piece of one document."""
  prefix = (np.array(chat.prefix, np.int32), NO_DOCUMENT)
  suffix = (np.array(chat.suffix, np.int32), NO_DOCUMENT)
  room = window - chat.smallest_window + 1
  for number, text in numbered:
    ids = np.array(chat.encode(tokenizer, text), np.int32)
    for start in range(0, len(ids), room):
      piece = (ids[start : start + room], number)
      yield _close([prefix, piece, suffix], tokenizer, window)


def _close(parts, tokenizer, window):
  """One window and its owners, from runs that fit in it."""
  ids = np.full(window, tokenizer.pad_id, np.int32)
  owner = np.full(window, NO_DOCUMENT, np.int32)
  ids[0] = tokenizer.bos_id
  start = 1
  for part, number in parts:
    ids[start : start + len(part)] = part
    owner[start : start + len(part)] = number
    start += len(part)
  return ids, owner
