"""Chunks of tokens -> the files of one `Windows`, and these opened again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy, count_kept
from gemmascope_jax.data.tokens.packing import NO_DOCUMENT, Windows
from gemmascope_jax.data.tokens.token_chunks import ARRAYS, Budget, Chunks

INDEX = "windows.json"
KIND = "gemmascope_jax tokens"
FORMAT = 1


def merge(
  folder: pathlib.Path,
  chunks: Chunks,
  numbers: Sequence[int],
  asked: dict[str, Any],
) -> None:
  """Writes the arrays of `Windows`, then `windows.json`.

  Needs the memory of one chunk, and 8 bytes a document.

  Args:
    folder: of the result.
    chunks: the finished chunks.
    numbers: those that are joined, in this order.
    asked: what the windows are for; "rows" and "windows" are the budget, which
      only the last chunk may go beyond, "policy" says what counts.

  Raises:
    ValueError: a chunk's file is damaged.
  """
  for name in (INDEX, *(f"{name}.npy" for name in ARRAYS)):
    for left_over in folder.glob(f"{name}.*.incomplete"):
      left_over.unlink()  # of one that was killed here
  counts = _windows_used(chunks, numbers, asked)
  total, window = sum(counts), asked["window"]
  digest = hashlib.sha256()
  kept = 0
  with _array_file(folder, "tokens", "<i4", (total, window), digest) as write:
    for number, count in zip(numbers, counts, strict=True):
      tokens = chunks.read(number, "tokens")[:count]
      write(tokens)
      policy = TokenPolicy.from_dict(asked["policy"])
      kept += int(count_kept(policy, tokens).sum())
  known = first = 0
  shape = (total, window)
  with _array_file(folder, "documents", "<i4", shape, digest) as write:
    for number, count in zip(numbers, counts, strict=True):
      owners = chunks.read(number, "documents")[:count]
      owners = np.where(owners == NO_DOCUMENT, owners, owners + first)
      write(owners.astype(np.int32))
      known = max(known, int(owners.max(initial=NO_DOCUMENT)) + 1)
      first += chunks.find(number).documents
  sources: dict[str, None] = {}
  first = 0
  with _array_file(folder, "keys", "<u8", (known,), digest) as write:
    for number in numbers:
      write(chunks.read(number, "keys")[: max(0, known - first)])
      chunk = chunks.find(number)
      for source in sorted(chunk.sources, key=chunk.sources.get):
        if first + chunk.sources[source] < known:
          sources[source] = None
      first += chunk.documents
  artifacts.write_json(
    folder / INDEX,
    {
      "kind": KIND,
      "format": FORMAT,
      "code_version": artifacts.code_version(),
      "key": asked,
      "sources": list(sources),
      "fingerprint": digest.hexdigest(),
      "windows": total,
      "window": window,
      "rows": kept,
      "documents": known,
    },
  )


def _windows_used(chunks, numbers, asked) -> list[int]:
  """Windows of each chunk that are needed: all but in the last one."""
  counts = [chunks.find(number).windows for number in numbers]
  budget = Budget(asked["rows"], asked["windows"])
  rows = sum(chunks.find(number).rows for number in numbers[:-1])
  policy = TokenPolicy.from_dict(asked["policy"])
  kept = count_kept(policy, chunks.read(numbers[-1], "tokens"))
  before = sum(counts[:-1])
  for used, reached in enumerate(rows + np.cumsum(kept), 1):
    if budget.reached(reached, before + used):
      return [*counts[:-1], used]
  return counts


@contextlib.contextmanager
def _array_file(folder, name, dtype, shape, digest) -> Iterator:
  """Writes an `.npy` file part by part; hashes as `sha256_arrays` does."""
  header = {"descr": dtype, "fortran_order": False, "shape": shape}
  digest.update(f"{dtype}{shape}".encode())
  with artifacts.atomic_write(folder / f"{name}.npy") as file:
    np.lib.format.write_array_header_1_0(file, header)

    def write(part: np.ndarray) -> None:
      raw = np.ascontiguousarray(part, dtype).tobytes()
      digest.update(raw)
      file.write(raw)

    yield write


def read_object(path: pathlib.Path, *fields: str) -> dict[str, Any]:
  """Reads a JSON file that a folder of tokens can't do without.

  Args:
    path: of the file, in the folder.
    *fields: what it has to hold, at least.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged; names it and what to do.
  """
  try:
    value = artifacts.read_json(path)
    if not isinstance(value, dict):
      raise ValueError(f"it is a {type(value).__name__}, not an object")
    if missing := [field for field in fields if field not in value]:
      raise ValueError(f"it lacks {', '.join(missing)}")
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} is damaged ({error}): delete the folder {path.parent} and run"
      " the same command again, which makes its tokens anew"
    ) from error
  return value


def load(folder: str | os.PathLike) -> Windows:
  """Opens finished windows.

  They are hashed, at about 1 GiB/s, so that what is trained on is what was
  made.

  Args:
    folder: with `windows.json`.

  Returns:
    The windows; their arrays are memory maps, read-only.

  Raises:
    FileNotFoundError: there are none.
    ValueError: they are not those that `windows.json` describes, or of a newer
      format, or that file is damaged.
  """
  folder = pathlib.Path(folder)
  index = read_object(folder / INDEX, "kind", "format")
  if index["kind"] != KIND or index["format"] != FORMAT:
    raise ValueError(
      f"{folder / INDEX} is of kind {index['kind']!r}, format"
      f" {index['format']}; this version of the code reads {KIND!r}, format"
      f" {FORMAT}: update gemmascope_jax"
    )
  read_object(folder / INDEX, "sources", "fingerprint")
  try:
    windows = Windows(
      **{
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS
      },
      sources=tuple(index["sources"]),
    )
    reason = (
      "" if windows.fingerprint == index["fingerprint"] else "its SHA-256"
    )
  except (FileNotFoundError, ValueError, EOFError) as error:
    reason = str(error)
  if reason:
    raise ValueError(
      f"{folder} holds other tokens than its {INDEX} says ({reason}): delete"
      " the folder and run the same command again"
    )
  return windows
