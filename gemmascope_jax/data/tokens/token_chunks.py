"""Chunks of a text, each tokenised by itself: files that are whole or absent.

A chunk is a run of documents with a given number of characters, so where it
begins follows from the text alone. Its sidecar is written last: a chunk that
has one is finished, and is never tokenised again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from gemmascope_jax import artifacts
from gemmascope_jax.data.text.documents import Document, content_key
from gemmascope_jax.data.tokens.packing import Packed

ARRAYS = ("tokens", "documents", "keys")


def cut(
  documents: Iterable[Document | str], characters: int
) -> Iterator[list[Document]]:
  """Runs of whole documents of at least `characters`; the last may be less."""
  held, size = [], 0
  for document in documents:
    if isinstance(document, str):
      document = Document(document, "", content_key(document))
    held.append(document)
    size += len(document.text)
    if size >= characters:
      yield held
      held, size = [], 0
  if held:
    yield held


def text_hash(documents: Iterable[Document]) -> str:
  """Hex SHA-256 that tells a run of documents, or pieces, from any other."""
  digest = hashlib.sha256()
  for document in documents:
    line = f"{document.key:016x} {len(document.text)} {document.source}\n"
    digest.update(line.encode("utf-8", "surrogatepass"))
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Chunk:
  """A finished chunk, as its sidecar describes it.

  Attributes:
    text: `text_hash` of its documents.
    windows: how many it has.
    rows: kept positions in them.
    documents: how many it was made of; they are numbered from 0 in its file.
    sources: the number of the first document of each source.
    sha256: of the file of each array.
  """

  text: str
  windows: int
  rows: int
  documents: int
  sources: dict[str, int]
  sha256: dict[str, str]

  @classmethod
  def from_json(cls, value: Any) -> Chunk:
    """A chunk of what is in its sidecar.

    Raises:
      ValueError: that does not describe a chunk; says why.
    """
    kinds = dict(
      text=str, windows=int, rows=int, documents=int, sources=dict, sha256=dict
    )
    if not isinstance(value, dict) or set(value) != set(kinds):
      raise ValueError(f"expected an object with {', '.join(kinds)}")
    for name, kind in kinds.items():
      if not isinstance(value[name], kind):
        raise ValueError(f"{name} {value[name]!r}: expected {kind.__name__}")
    if set(value["sha256"]) != set(ARRAYS):
      raise ValueError(f"sha256: expected one of each of {', '.join(ARRAYS)}")
    return cls(**value)


class Chunks:
  """The finished chunks in a folder, which other processes add to.

  Args:
    folder: of the chunks; may not be there yet.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._found: dict[int, Chunk] = {}
    self._unreadable: set[int] = set()  # that a warning was given of

  def path(self, number: int, name: str) -> pathlib.Path:
    """File `name` of a chunk: "json", or one of `ARRAYS` with ".npy"."""
    return self.folder / f"{number:07d}.{name}"

  def find(self, number: int) -> Chunk | None:
    """A chunk, if it is finished; with a damaged sidecar it is not."""
    if number not in self._found:
      path = self.path(number, "json")
      try:
        self._found[number] = Chunk.from_json(artifacts.read_json(path))
      except FileNotFoundError:
        return None
      except (ValueError, RecursionError) as error:
        if number not in self._unreadable:
          self._unreadable.add(number)
          logging.warning(
            "%s is damaged (%s): this chunk is made anew", path, error
          )
        return None
    return self._found[number]

  def write(self, number: int, packed: Packed, text: str) -> None:
    """Puts a chunk on disk, its sidecar last."""
    hashes = {}
    for name in ARRAYS:
      path = self.path(number, f"{name}.npy")
      artifacts.write_npy(path, getattr(packed, name))
      hashes[name] = artifacts.sha256_file(path)
    chunk = Chunk(
      text=text,
      windows=len(packed.tokens),
      rows=packed.rows,
      documents=len(packed.keys),
      sources=packed.sources,
      sha256=hashes,
    )
    artifacts.write_json(self.path(number, "json"), dataclasses.asdict(chunk))

  def read(self, number: int, name: str) -> np.ndarray:
    """One array of a finished chunk.

    Raises:
      ValueError: the file is not the one that was written.
    """
    path = self.path(number, f"{name}.npy")
    raw = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(raw).hexdigest() != self.find(number).sha256[name]:
      raise ValueError(
        f"{path} is damaged (its SHA-256 is not that of its sidecar): delete"
        f" {self.path(number, 'json')} and run the same command again, which"
        " makes only this chunk anew"
      )
    return np.load(io.BytesIO(raw))


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much is wanted.

  Attributes:
    rows: kept positions; None: any number.
    windows: None: any number.
  """

  rows: int | None
  windows: int | None

  def reached(self, rows: float, windows: float) -> bool:
    """Whether so much is enough."""
    return bool(
      (self.rows and rows >= self.rows)
      or (self.windows and windows >= self.windows)
    )

  def less(self, rows: int, windows: int) -> dict[str, Any]:
    """What is left to do for whoever has so much, at least 1 of each."""
    return {
      "rows": self.rows and max(1, self.rows - rows),
      "windows": self.windows and max(1, self.windows - windows),
    }
