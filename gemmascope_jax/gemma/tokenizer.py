"""Tokenizers: the protocol that the project relies on, and Hugging Face's.

`sentencepiece_model` has the other implementation.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from gemmascope_jax import artifacts
from gemmascope_jax.gemma.weights.errors import TokenizerNotFoundError

# What tokenizers of equal vocabularies most often disagree on.
_PROBE = (
  "The  quick\tbrown fox;   1234567.89\n\n\n    def f(x):\r\n        return  x"
  " ▁ naïve Größe 東京都 привет 👩‍🚀\x00\ue000 <start_of_turn>user\n<b></b>  "
)
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
  """Text to ids and back.

  A control word in a text ("<start_of_turn>", but also "<bos>") becomes its
  token, as in the tokenizer files that were published with the models.

  Attributes:
    bos_id: begins every sequence.
    eos_id: ends a document.
    pad_id: fills up a batch.
    vocab_size: all ids are below it.
    fingerprint: the same for tokenizers with the same pieces that also agree
      on a text made of the cases where tokenizers differ.
  """

  bos_id: int
  eos_id: int
  pad_id: int
  vocab_size: int

  @property
  def fingerprint(self) -> str:
    """Hex, 16 digits."""

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without BOS."""

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids; BOS, EOS and padding are left out."""

  def pieces(self, ids: Iterable[int]) -> list[str]:
    """What to display for each id; see `display`."""


def display(pieces: Iterable[str]) -> list[str]:
  """Vocabulary pieces as readable strings, one for each.

  Args:
    pieces: as in the vocabulary: "▁" for a space, "<0xE2>" for a byte.

  Returns:
    The strings. A character spelled in several byte pieces stands at the first
    of them and the others are empty, so that the strings joined are the text;
    bytes that spell no character are U+FFFD each.
  """
  shown: list[str] = []
  run: list[int] = []
  for piece in pieces:
    match = _BYTE.fullmatch(piece)
    if match:
      run.append(int(match[1], 16))
      continue
    shown += _characters(bytes(run))
    run = []
    shown.append(piece.replace("▁", " "))
  return shown + _characters(bytes(run))


def _characters(run: bytes) -> list[str]:
  """One string for each byte."""
  shown: list[str] = []
  while len(shown) < len(run):
    rest = run[len(shown) :]
    for size in range(1, 5):
      try:
        character = rest[:size].decode()
      except UnicodeDecodeError:
        continue
      if len(character) == 1:
        shown += [character] + [""] * (size - 1)
        break
    else:
      shown.append(_REPLACEMENT)
  return shown


def fingerprint(pieces: Sequence[str], encode) -> str:
  """Identifies a tokenizer by its pieces and its ids for a fixed text."""
  digest = hashlib.sha256("\n".join(pieces).encode(errors="surrogatepass"))
  digest.update(json.dumps(encode(_PROBE)).encode())
  return digest.hexdigest()[:16]


class HuggingFaceTokenizer:
  """A folder's `tokenizer.json`; see `Tokenizer`.

  Read with the `tokenizers` library itself: going through transformers gives
  the same ids, but costs seconds at each start, and more with torch installed.

  Args:
    folder: with `tokenizer.json` and, for the names of the special tokens,
      `tokenizer_config.json`.

  Raises:
    TokenizerNotFoundError: there is no `tokenizer.json`.
    ValueError: it can't be read, or lacks a special token.
  """

  def __init__(self, folder: str | os.PathLike):
    import tokenizers

    path = pathlib.Path(folder) / "tokenizer.json"
    if not path.is_file():
      raise TokenizerNotFoundError(f"no tokenizer: {path} does not exist")
    try:
      self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception
      raise ValueError(
        f"{path} can't be read as a tokenizer: {error}"
      ) from error
    config = path.with_name("tokenizer_config.json")
    names = artifacts.read_json(config) if config.is_file() else {}
    self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=False)
    self.bos_id = self._special(path, names, "bos_token", "<bos>")
    self.eos_id = self._special(path, names, "eos_token", "<eos>")
    self.pad_id = self._special(path, names, "pad_token", "<pad>")
    # Words that were added beyond the rows that every text model has, such as
    # Gemma 3's "<image_soft_token>": text, as far as we are concerned. They
    # are cut after their first character, which the library never sees whole.
    added = self._tokenizer.get_added_tokens_decoder()
    outside = [
      token.content for id_, token in added.items() if id_ >= self.vocab_size
    ]
    self._cuts = re.compile(
      "|".join(
        f"(?<={re.escape(word[0])})(?={re.escape(word[1:])})"
        for word in outside
      )
      or r"(?!)"
    )

  def _special(self, path, names, key: str, default: str) -> int:
    name = names.get(key) or default
    name = name["content"] if isinstance(name, dict) else name
    id_ = self._tokenizer.token_to_id(name)
    if id_ is None:
      raise ValueError(f"{path}: {key} {name!r} is not in the vocabulary")
    return id_

  def encode(self, text: str) -> list[int]:
    """See `Tokenizer`."""
    ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    if ids and max(ids) >= self.vocab_size:
      return [id_ for part in self._cuts.split(text) for id_ in self._ids(part)]
    return ids

  def _ids(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    """See `Tokenizer`."""
    left_out = {self.bos_id, self.eos_id, self.pad_id}
    kept = [int(id_) for id_ in ids if int(id_) not in left_out]
    return self._tokenizer.decode(kept, skip_special_tokens=False)

  def pieces(self, ids: Iterable[int]) -> list[str]:
    """See `Tokenizer`."""
    return display(self._raw(ids))

  def _raw(self, ids: Iterable[int]) -> list[str]:
    to_token = self._tokenizer.id_to_token
    return [to_token(int(id_)) or _REPLACEMENT for id_ in ids]

  @functools.cached_property
  def fingerprint(self) -> str:
    """See `Tokenizer`."""
    return fingerprint(self._raw(range(self.vocab_size)), self.encode)


class MissingTokenizer:
  """Stands where a source has no tokenizer; every use says what is missing.

  Args:
    reason: the message: where it was looked for, and what to do.
  """

  def __init__(self, reason: str):
    self._reason = reason

  def __getattr__(self, name: str):
    if name.startswith("__"):
      raise AttributeError(name)
    raise TokenizerNotFoundError(self._reason)


def open_tokenizer(path: str | os.PathLike) -> Tokenizer:
  """A tokenizer from disk.

  Args:
    path: a folder with `tokenizer.json` or `tokenizer.model`, or one of these
      files.

  Raises:
    TokenizerNotFoundError: there is neither.
  """
  from gemmascope_jax.gemma import sentencepiece_model

  path = pathlib.Path(path)
  if path.name == "tokenizer.json":
    return HuggingFaceTokenizer(path.parent)
  if path.is_file():
    return sentencepiece_model.SentencePieceTokenizer(path)
  if (path / "tokenizer.json").is_file():
    return HuggingFaceTokenizer(path)
  if (path / "tokenizer.model").is_file():
    return sentencepiece_model.SentencePieceTokenizer(path / "tokenizer.model")
  raise TokenizerNotFoundError(
    f"no tokenizer: {path} holds neither tokenizer.json nor tokenizer.model;"
    " pass one with gs.gemma.load(..., tokenizer=PATH)"
  )
