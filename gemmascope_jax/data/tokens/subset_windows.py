"""Evaluation windows of each subset of a corpus: as many of every one.

Letters: S windows of a subset, T tokens in a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
import tqdm

from gemmascope_jax.data.text import documents
from gemmascope_jax.data.text.documents import Document
from gemmascope_jax.data.text.seen import Seen
from gemmascope_jax.data.text.subsets import Corpus, Subset
from gemmascope_jax.data.tokens import packing
from gemmascope_jax.data.tokens.packing import Windows

# A document gives a piece of about one window, at so many characters a token:
# windows of one document would not be independent, and no single paper or file
# is to fill a subset.
_CHARACTERS_A_TOKEN = 4


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetWindows:
  """Windows of the subsets of a corpus, and what was left out.

  Attributes:
    windows: int32 tokens [S, T] for each subset that has enough text.
    subsets: what the text of each subset is, also of those left out.
    short: how many whole windows the text of a subset makes that has too
      little; such a subset is not in `windows`.
    missing: why a subset has no text.
    excluded: documents of each subset that were passed over because they are
      in `exclude_keys`.
    repeated: documents that were passed over because they came before, in any
      of the subsets.
  """

  windows: dict[str, Windows]
  subsets: dict[str, Subset]
  short: dict[str, int]
  missing: dict[str, str]
  excluded: dict[str, int]
  repeated: dict[str, int]

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready: of each subset what it is and what it lacks."""
    found = {}
    for name, subset in self.subsets.items():
      found[name] = {
        "sources": list(subset.sources),
        "stand_in": subset.stand_in,
        "note": subset.note,
        "excluded_documents": self.excluded[name],
        "repeated_documents": self.repeated[name],
      }
      if name in self.windows:
        windows = self.windows[name]
        found[name]["sequences"] = len(windows.tokens)
        found[name]["documents"] = len(windows.keys)
        found[name]["fingerprint"] = windows.fingerprint
      else:
        found[name]["missing"] = self.missing[name]
    return found


def make(
  corpus: Corpus,
  tokenizer: Any,
  *,
  sequences: int,
  window: int,
  trained_on: Collection[str] = (),
  exclude_keys: np.ndarray | None = None,
  document_characters: int | None = None,
  max_documents: int | None = None,
  progress: bool = True,
) -> SubsetWindows:
  """Makes the same number of windows for every subset.

  Args:
    corpus: of `subsets.pile` or `subsets.stand_ins`.
    tokenizer: as for `packing.pack`.
    sequences: S.
    window: T, BOS included.
    trained_on: names of the sources that the SAEs were trained on. Of these
      only held-out documents are taken (`documents.split_of`); of others all.
    exclude_keys: uint64, `Document.key` of documents that are not taken: those
      of the store of training activations (`store.keys`), which the split
      alone does not find where the same text comes from another source.
    document_characters: a document that is longer gives one piece of so many,
      which one being decided by its key; None: of about one window.
    max_documents: stop after so many were looked at, of an endless corpus.
    progress: show a progress bar.

  Returns:
    The windows, and which subsets are short of text or have none.

  Raises:
    ValueError: no subset has enough text; or numbers that make no sense.
  """
  packing.check(window, None, sequences, None)
  not_taken, seen = _sorted_keys(exclude_keys), Seen()
  if document_characters is None:
    document_characters = _CHARACTERS_A_TOKEN * window
  names = [name for name, subset in corpus.subsets.items() if subset.sources]
  wanted = set(names)
  taken: dict[str, list[Document]] = {name: [] for name in names}
  tokens = dict.fromkeys(names, 0)
  excluded = dict.fromkeys(corpus.subsets, 0)
  repeated = dict.fromkeys(corpus.subsets, 0)
  enough = sequences * (window - 1)
  between = len(tokenizer.encode(packing.SEPARATOR))
  bar = tqdm.tqdm(
    total=enough * len(names),
    desc=f"tokens of {len(names)} subsets",
    unit="token",
    unit_scale=True,
    disable=not progress or jax.process_index() > 0,
  )
  looked_at = 0
  for name, document in corpus.read(wanted, trained_on):
    looked_at += 1
    if _holds(not_taken, document.key):
      excluded[name] += 1
    elif not seen.add(document.key):
      repeated[name] += 1
    else:
      pieces = documents.cut(document, document_characters)
      piece = pieces[document.key % len(pieces)]
      count = len(tokenizer.encode(piece.text))
      count += between if taken[name] and count else 0
      taken[name].append(piece)
      bar.update(min(count, enough - tokens[name]))
      tokens[name] += count
      if tokens[name] >= enough:
        wanted.discard(name)
        tokens[name] = enough
    if not wanted or looked_at == max_documents:
      break
  bar.close()
  short = {
    name: tokens[name] // (window - 1) for name in names if name in wanted
  }
  missing = {
    name: subset.note or f"no text: {subset.stand_in}"
    for name, subset in corpus.subsets.items()
    if not subset.sources
  } | {
    name: f"its text makes {found} windows of {window} tokens, of {sequences}"
    f" that were asked for; {looked_at} documents were looked at"
    for name, found in short.items()
  }
  windows = {
    name: packing.pack(taken[name], tokenizer, window, windows=sequences)
    for name in names
    if name not in wanted
  }
  if not windows:
    reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
    raise ValueError(
      f"no subset has text for {sequences} windows of {window} tokens: ask for"
      f" less, or add text. {reasons}"
    )
  return SubsetWindows(
    windows, corpus.subsets, short, missing, excluded, repeated
  )


def _sorted_keys(keys: np.ndarray | None) -> np.ndarray:
  if keys is None:
    return np.zeros(0, np.uint64)
  if keys.dtype != np.uint64:
    raise ValueError(
      f"exclude_keys of dtype {keys.dtype}: expected uint64, as `store.keys`"
    )
  return np.sort(keys)


def _holds(keys: np.ndarray, key: int) -> bool:
  place = int(keys.searchsorted(np.uint64(key)))
  return place < len(keys) and int(keys[place]) == key
