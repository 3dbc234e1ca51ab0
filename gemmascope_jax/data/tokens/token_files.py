"""Documents -> windows of tokens on disk, for more text than memory holds.

The documents are cut into chunks of a fixed number of characters. A chunk is
tokenised and packed by itself into files of a work folder. Process p of n makes
the chunks c with c % n == p; the processes know of each other by these files
only, and the result depends neither on n nor on who was killed when. A finished
chunk is never tokenised again: its text is read and hashed, and skipped. On one
core that ran at 129 million characters a second (18, when they had to be made
from the packaged files), where tokenising runs at 1.2 million, 250,000 tokens.

Once the finished chunks without a gap hold what was asked for, whoever notices
joins them into `tokens.npy`, `documents.npy` and `keys.npy`, writes
`windows.json`, which makes the folder whole, and removes the chunks. For a
moment the folder so takes twice the space of the result, 8 bytes a token.

Windows don't cross chunks: the last window of a chunk is padded like the last
of a text. A text of one chunk gives the windows of `packing.pack`.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tqdm

from gemmascope_jax import artifacts
from gemmascope_jax.data import lock
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.text.documents import Document
from gemmascope_jax.data.tokens import packing, token_chunks, token_merge
from gemmascope_jax.data.tokens.chat import ChatTemplate
from gemmascope_jax.data.tokens.packing import Windows

CHUNK_CHARACTERS = 1 << 24
KEY = "key.json"
CHUNKS = "chunks"
_LOCK = "merge.lock"
_POLL = (0.02, 2.0)  # seconds between looks, at first and at most


class TokensMismatchError(ValueError):
  """A folder holds other tokens, or was made of another text."""


def make(
  folder: str | os.PathLike,
  documents: Callable[[], Iterable[Document | str]],
  tokenizer: Any,
  window: int,
  *,
  key: dict[str, Any],
  policy: TokenPolicy | None = None,
  rows: int | None = None,
  windows: int | None = None,
  packed: bool = True,
  chat: ChatTemplate | None = None,
  chunk_characters: int = CHUNK_CHARACTERS,
  part: tuple[int, int] = (0, 1),
  progress: bool = True,
  timeout_s: float = 3600.0,
) -> Windows:
  """Makes the windows, or what is missing of them, or opens them.

  Args:
    folder: of the result; made if need be.
    documents: gives the documents from the first one on, the same each time;
      not called if nothing is left to do.
    tokenizer: with `encode(text) -> ids` (no BOS), `bos_id`, `pad_id` and
      `fingerprint`.
    window: T, BOS included.
    key: what determines the documents, as plain JSON: sources, split, seed.
    policy: see `packing.pack`, as for `rows`, `windows`, `packed` and `chat`.
    rows: kept positions that are wanted; None: no limit.
    windows: windows that are wanted; None: no limit.
    packed: join documents.
    chat: the markup around documents.
    chunk_characters: a chunk ends with the document that reaches it. A chunk
      is what is held in memory, and what a kill can cost.
    part: (p, n): this is process p of n; all get the same windows.
    progress: show a progress bar.
    timeout_s: how long to wait for one chunk of another process, or for
      another process to join the chunks.

  Returns:
    The windows, as memory maps.

  Raises:
    TokensMismatchError: the folder is for another key (says what differs), or
      the text has changed since some chunks were made.
    LockedError: another process makes the same chunk.
    TimeoutError: what another process makes did not come.
    ValueError: arguments that make no sense, no text, less text than the
      budget asks for, or a damaged file.
  """
  packing.check(window, rows, windows, chat)
  if chunk_characters < 1:
    raise ValueError(
      f"chunk_characters {chunk_characters}: expected at least 1"
    )
  if not 0 <= part[0] < part[1]:
    raise ValueError(
      f"part {part}: expected (p, n) with p from 0 to n - 1, as (0, 1) for a"
      " process alone"
    )
  if policy is None:
    policy = packing.default_policy(tokenizer, chat)
  how = {"policy": policy, "packed": packed, "chat": chat}
  folder = pathlib.Path(folder)
  asked = {
    "format": token_merge.FORMAT,
    "documents": key,
    "tokenizer": tokenizer.fingerprint,
    "window": window,
    "rows": rows,
    "windows": windows,
    "chunk_characters": chunk_characters,
  }
  asked = json.loads(artifacts.canonical_json(asked | how))
  _require_key(folder, asked)
  if not (folder / token_merge.INDEX).exists():
    budget = token_chunks.Budget(rows, windows)
    with tqdm.tqdm(
      total=rows or windows,
      desc="tokens",
      unit=" rows" if rows or not windows else " windows",
      unit_scale=True,
      disable=not progress,
    ) as bar:
      work = _Work(folder, budget, part, bar, timeout_s)
      end = work.make_chunks(
        lambda: token_chunks.cut(documents(), chunk_characters),
        lambda chunk, left: packing.pack_until(
          chunk, tokenizer, window, **how, **left
        ),
      )
      work.finish(end, asked)
  shutil.rmtree(folder / CHUNKS, ignore_errors=True)
  (folder / _LOCK).unlink(missing_ok=True)  # of one that was killed at the end
  return token_merge.load(folder)


def _require_key(folder: pathlib.Path, asked: dict[str, Any]) -> None:
  """Signs a new folder; refuses one that was signed for something else."""
  try:
    found = token_merge.read_object(folder / KEY)
  except FileNotFoundError:
    artifacts.write_json(folder / KEY, asked)
    return
  differences = artifacts.differences(found, asked)
  if differences:
    raise TokensMismatchError(
      f"{folder} holds other tokens: {'; '.join(differences)}. Use another"
      " folder, or delete this one"
    )


class _Work:
  """One process's share, and what it sees of the others'."""

  def __init__(self, folder, budget, part, bar, timeout_s):
    self._folder = folder
    self._budget = budget
    self._part, self._parts = part
    self._bar = bar
    self._timeout = timeout_s
    self._chunks = token_chunks.Chunks(folder / CHUNKS)
    self._gapless = 0  # chunks before this number are finished
    self._counts = np.zeros(2, np.int64)  # their rows and windows
    self._enough()
    bar.initial = bar.n

  def make_chunks(self, cut, pack) -> int | None:
    """Makes this process's chunks.

    Args:
      cut: gives the chunks' documents, from the first chunk on.
      pack: of documents and what is left of the budget -> Packed.

    Returns:
      The number of chunks in the text, if it ended before the budget.
    """
    if self._enough():
      return None
    number = -1
    for number, documents in enumerate(cut()):
      self._bar.set_postfix_str(f"chunk {number}")
      text = token_chunks.text_hash(documents)
      self._require_text(number, text)
      if number % self._parts == self._part:
        if not self._chunks.find(number):
          self._wait(
            lambda c=number: self._enough() or self._is_wanted(c),
            self._missing,
          )
          if self._enough():
            return None
          self._make(number, documents, text, pack)
      if self._enough():
        return None
    if self._chunks.find(number + 1):
      raise self._changed(number + 1)
    return number + 1

  def finish(self, end: int | None, asked: dict[str, Any]) -> None:
    """Joins the chunks once they are all there, unless another one does."""
    self._wait(lambda: self._enough() or self._gapless == end, self._missing)
    if not self._is_whole() and not self._enough():
      rows, windows = map(int, self._counts)
      packing.require_budget(
        windows, rows, self._budget.rows, self._budget.windows
      )
    self._wait(
      lambda: self._is_whole() or self._merge(asked),
      lambda: "the process that joins the chunks",
    )

  def _make(self, number, documents, text, pack) -> None:
    rows, windows = self._finished_before(number)[0]
    try:
      with lock.write_lock(self._chunks.folder, f"{number:07d}.lock"):
        if self._chunks.find(number):
          return
        left = self._budget.less(int(rows), int(windows))
        self._chunks.write(number, pack(documents, left), text)
    except FileNotFoundError:
      if not self._is_whole():  # else another has joined and tidied up
        raise

  def _merge(self, asked) -> bool:
    try:
      with lock.write_lock(self._folder, _LOCK):
        if not self._is_whole():
          chunks = range(self._gapless)
          token_merge.merge(self._folder, self._chunks, chunks, asked)
    except lock.LockedError:
      return False
    return True

  def _is_whole(self) -> bool:
    return (self._folder / token_merge.INDEX).exists()

  def _enough(self) -> bool:
    """Whether the chunks without a gap reach the budget, or all is done."""
    while not self._budget.reached(*self._counts):
      chunk = self._chunks.find(self._gapless)
      if chunk is None:
        return self._is_whole()
      self._gapless += 1
      self._counts += (chunk.rows, chunk.windows)
      by_windows = self._budget.windows and not self._budget.rows
      self._bar.n = int(self._counts[1 if by_windows else 0])
      self._bar.refresh()
    return True

  def _finished_before(self, number):
    """Rows and windows in finished chunks before one; how many are missing."""
    counts, missing = self._counts.copy(), 0
    for other in range(self._gapless, number):
      chunk = self._chunks.find(other)
      if chunk is None:
        missing += 1
      else:
        counts += (chunk.rows, chunk.windows)
    return counts, missing

  def _is_wanted(self, number: int) -> bool:
    """Whether a chunk will be needed, as far as can be told.

    The others' chunks before it are taken to hold as much as finished ones do.
    The first one that is missing is always wanted, so somebody always works.
    """
    counts, missing = self._finished_before(number)
    if not missing:
      return True
    finished = number - missing
    mean = counts / finished if finished else np.zeros(2)
    return not self._budget.reached(*(counts + missing * mean))

  def _require_text(self, number: int, text: str) -> None:
    chunk = self._chunks.find(number)
    if chunk is not None and chunk.text != text:
      raise self._changed(number)

  def _changed(self, number: int) -> TokensMismatchError:
    return TokensMismatchError(
      f"{self._folder}: the text has changed since its chunk {number} was"
      " tokenised (other documents, or in another order): put the sources back"
      " as they were, use another folder, or delete this one"
    )

  def _missing(self) -> str:
    owner = self._gapless % self._parts
    return f"chunk {self._gapless} of process {owner} of {self._parts}"

  def _wait(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
    """Returns when `ready`; meanwhile says for what it waits."""
    since, waited_for, pause = time.monotonic(), "", _POLL[0]
    while not ready():
      if what() != waited_for:
        since, waited_for = time.monotonic(), what()
        self._bar.set_postfix_str(f"waiting for {waited_for}")
      if time.monotonic() - since > self._timeout:
        raise TimeoutError(
          f"{self._folder}: waited {self._timeout:g} s for {waited_for}: see"
          " that it runs, then run the same command again; nothing that was"
          " made is lost"
        )
      time.sleep(pause)
      pause = min(2 * pause, _POLL[1])
