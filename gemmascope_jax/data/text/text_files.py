"""Texts in local files: .txt, .jsonl and .parquet, one document at a time.

A document that is larger than a limit is refused before it is read, so that a
file that is not what it seems costs an error message, not the machine's memory.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from absl import logging

SUFFIXES = (".txt", ".jsonl", ".parquet")
COLUMN = "text"
MAX_DOCUMENT_BYTES = 1 << 30
_PIECE = 1 << 20  # bytes of a line that are read without looking further
_BATCH = 64 << 20  # bytes of a Parquet column that are read at a time, about
_PAGE_HEADER = 1 << 16  # bytes a value may take beyond its own, at most
_ENDINGS_SHOWN = 5  # of files that are ignored


def find(name: str) -> list[pathlib.Path]:
  """The text files that a path stands for, in the order they are read.

  Args:
    name: a file, or a folder: all text files in it and below, by path. A "~"
      at its start is the user's home. Upper and lower case are the same in
      endings. Other files of a folder are ignored, with a warning.

  Raises:
    FileNotFoundError: there is nothing of that name, or a link to nothing.
    ValueError: it is no text file, or the folder has none.
  """
  path = pathlib.Path(os.path.expanduser(name))
  _require_target(path)
  if not path.exists():
    raise FileNotFoundError(
      f"text source 'file:{name}': there is no such file or folder (from"
      f" {os.getcwd()})"
    )
  suffixes = ", ".join(SUFFIXES)
  if path.is_dir():
    files, ignored = _in_folder(path)
    if not files:
      raise ValueError(
        f"text source 'file:{name}': no text: the folder holds no file that"
        f" ends in {suffixes}"
      )
    if ignored:
      endings = sorted({p.suffix.lower() or "no ending" for p in ignored})
      more = ", ..." if len(endings) > _ENDINGS_SHOWN else ""
      _warn_once(
        f"{path}: {len(files)} files read, {len(ignored)} ignored"
        f" ({', '.join(endings[:_ENDINGS_SHOWN])}{more}): only {suffixes} are"
        " read"
      )
    return files
  if path.suffix.lower() not in SUFFIXES:
    raise ValueError(
      f"text source 'file:{name}': expected a folder or a file that ends in"
      f" {suffixes}"
    )
  return [path]


def _in_folder(
  folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """The text files in a folder and below, and the files that are none."""
  files, ignored = [], []
  for path in sorted(folder.rglob("*")):
    if path.suffix.lower() in SUFFIXES:
      _require_target(path)
      if path.is_file():
        files.append(path)
        continue
    if not path.is_dir():
      ignored.append(path)
  return files, ignored


def _require_target(path: pathlib.Path) -> None:
  """Raises `FileNotFoundError` for a link to nothing."""
  if path.is_symlink() and not path.exists():
    raise FileNotFoundError(
      f"{path} is a link to {os.readlink(path)}, which is not there: put that"
      " back, or delete the link"
    )


@functools.cache  # by the message
def _warn_once(message: str) -> None:
  logging.warning("%s", message)


def read(path: pathlib.Path, limit: int = MAX_DOCUMENT_BYTES) -> Iterator[str]:
  """The documents of one file.

  Args:
    path: a .txt file is one document, a .jsonl file one a line (its field
      "text"), a .parquet file one a row (its column "text"). A byte order mark
      at the start of the former two is no part of the text.
    limit: bytes that a document may have: a .txt file, a line of a .jsonl
      file, a value of a .parquet file.

  Raises:
    ValueError: a document is larger (names file, line or row), or the file is
      not what its name says.
  """
  kind = path.suffix.lower()
  if kind == ".txt":
    yield _read_txt(path, limit)
  elif kind == ".jsonl":
    with open(path, "rb") as file:
      for number, line in enumerate(_lines(path, file, limit), 1):
        if number == 1:
          line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
          where = f"{path}, line {number}"
          yield of_row(_json_row(where, line), COLUMN, where)
  else:
    for _, text in _parquet_texts(path, limit, None):
      yield text


def read_labelled(
  path: pathlib.Path, label: str, limit: int = MAX_DOCUMENT_BYTES
) -> Iterator[tuple[str, str]]:
  """(label, text) of each document of a .jsonl or .parquet file.

  Args:
    path: see `read`.
    label: where a row says which subset it belongs to; see `label_of`.
    limit: see `read`.

  Raises:
    ValueError: as `read`, or a row has no label, or the file has no rows.
  """
  kind = path.suffix.lower()
  if kind == ".txt":
    raise ValueError(
      f"{path} has no rows, so no label {label!r}: give .jsonl or .parquet"
      " files, whose rows say which subset they belong to"
    )
  if kind == ".jsonl":
    with open(path, "rb") as file:
      for number, line in enumerate(_lines(path, file, limit), 1):
        if number == 1:
          line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
          where = f"{path}, line {number}"
          row = _json_row(where, line)
          yield label_of(row, label, where), of_row(row, COLUMN, where)
  else:
    yield from _parquet_texts(path, limit, label)


def label_of(row: dict[str, Any], label: str, where: str) -> str:
  """The label in a row.

  Args:
    row: one row.
    label: its column, or a path such as "meta.pile_set_name": the entry
      `pile_set_name` of the column `meta`, which may hold it as JSON too.
    where: for the error.

  Raises:
    ValueError: there is none; names `where` and the columns that there are.
  """
  value = row
  for name in [label] if label in row else label.split("."):
    if isinstance(value, str):
      try:
        value = json.loads(value)
      except (ValueError, RecursionError):
        value = None
    value = value.get(name) if isinstance(value, dict) else None
  if not isinstance(value, str) or value is row:
    raise ValueError(
      f"{where}: no label in {label!r} (columns: {', '.join(row)}): expected a"
      " text that says which subset the row belongs to"
    )
  return value


def too_large(what: str, size: str, limit: int) -> ValueError:
  """The error for a document beyond the limit."""
  return ValueError(
    f"{what} is one document of {size}, but max_document_bytes is {limit:,}:"
    " cut it into several documents (lines of a .jsonl file, for one). In"
    " Python a larger max_document_bytes can be passed, given the memory for"
    " it; the binaries have no setting for it"
  )


def of_row(row: dict[str, Any], column: str, where: str) -> str:
  """The text in a row.

  Raises:
    ValueError: there is none; names `where` and the columns that there are.
  """
  text = row.get(column)
  if not isinstance(text, str):
    raise ValueError(
      f"{where}: no text in column {column!r} (columns: {', '.join(row)})"
    )
  return text


def of_tables(
  tables: Iterable[Any],
  column: str,
  where: str,
  limit: int,
  label: str | None = None,
) -> Iterator[tuple[str | None, str]]:
  """(label, text) of each row of Arrow tables or record batches.

  The sizes of texts are looked at before any of them becomes a string.

  Args:
    tables: with the column, and that of the label.
    column: of the texts.
    where: for errors.
    limit: bytes that a text may have.
    label: see `label_of`; None: labels are None.
  """
  import pyarrow as pa
  import pyarrow.compute as pc

  row = 0
  for table in tables:
    values = table.column(column)
    if pa.types.is_dictionary(values.type):
      values = values.cast(values.type.value_type)
    kinds = (pa.types.is_string, pa.types.is_large_string)
    if not any(kind(values.type) for kind in kinds):
      raise ValueError(
        f"{where}: no text in column {column!r}: it is of type {values.type}"
      )
    sizes = pc.binary_length(values)
    if (pc.max(sizes).as_py() or 0) > limit:
      number = sizes.to_pylist().index(pc.max(sizes).as_py())
      what = f"{where}, row {row + number + 1}"
      raise too_large(what, f"{sizes[number].as_py():,} bytes", limit)
    try:
      found = values.to_pylist()
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{where}, a row from {row + 1} to {row + len(values)}: not UTF-8 text"
        f" ({error}): it is damaged or was written wrongly; get or write it"
        " again"
      ) from error
    labels = _labels(table, label, where, row)
    for text in found:
      row += 1
      text = of_row({column: text}, column, f"{where}, row {row}")
      yield next(labels), text


def _labels(table, label, where, row) -> Iterator[str | None]:
  """The labels of a table whose first row has the number `row` + 1."""
  if label is None:
    yield from itertools.repeat(None)
  column = label_column(table.schema.names, label, where)
  for number, value in enumerate(table.column(column).to_pylist(), row + 1):
    yield label_of({column: value}, label, f"{where}, row {number}")


def label_column(columns: Iterable[str], label: str, where: str) -> str:
  """The column that holds a label, `label` itself or what its path begins with.

  Raises:
    ValueError: there is none; names the columns that there are.
  """
  columns = list(columns)
  column = label if label in columns else label.split(".")[0]
  if column not in columns:
    label_of(dict.fromkeys(columns), label, where)
  return column


def _read_txt(path: pathlib.Path, limit: int) -> str:
  size = path.stat().st_size
  if size > limit:
    raise too_large(str(path), f"{size:,} bytes", limit)
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path} is not UTF-8 text (byte {error.start}): convert it first"
    ) from error


def _lines(path: pathlib.Path, file: BinaryIO, limit: int) -> Iterator[bytes]:
  """Lines; the end of a long one is looked for before it is read."""
  number, piece = 0, min(limit, _PIECE) + 1
  while line := file.readline(piece):
    number += 1
    size, part = len(line), line
    while size <= limit and part and not part.endswith(b"\n"):
      part = file.readline(piece)
      size += len(part)
    if size > limit + part.endswith(b"\n"):
      what = f"{path}, line {number},"
      raise too_large(what, f"over {limit:,} bytes", limit)
    if size > len(line):
      file.seek(-size, os.SEEK_CUR)
      line = file.readline()
    yield line


def _json_row(where: str, line: bytes) -> dict[str, Any]:
  """The object in a line; one without entries for anything else."""
  try:
    # Integers may have more digits than Python converts; none is looked at.
    row = json.loads(line.decode("utf-8"), parse_int=float)
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{where}: not UTF-8 text (byte {error.start} of the line): convert it"
      " first"
    ) from error
  except (ValueError, RecursionError) as error:
    deep = isinstance(error, RecursionError)
    reason = "nested too deeply to be read" if deep else f"not JSON: {error}"
    raise ValueError(
      f"{where}: {reason}; expected an object with a text under {COLUMN!r}:"
      " mend the line or delete it"
    ) from error
  return row if isinstance(row, dict) else {}


def _parquet_texts(path, limit, label) -> Iterator[tuple[str | None, str]]:
  """Row group by row group, so that a large file is never held whole.

  Parquet tells the size of a column in a row group, not that of a value, and
  has no value over 2 GiB. So that a row group whose mean value is beyond the
  limit is not read at all, and of another one a single such value is read, but
  not made a string.
  """
  import pyarrow as pa
  import pyarrow.parquet

  where = str(path)
  try:
    with pyarrow.parquet.ParquetFile(path, buffer_size=8 << 20) as file:
      names = file.schema_arrow.names
      if COLUMN not in names:
        of_row(dict.fromkeys(names), COLUMN, where)
      columns = [COLUMN]
      if label is not None:
        columns.append(label_column(names, label, where))
      tables = _batches(path, file, limit, columns)
      yield from of_tables(tables, COLUMN, where, limit, label)
  except (pa.ArrowException, OSError) as error:
    if getattr(error, "errno", None) is not None:
      raise  # of the file system: says so itself
    raise ValueError(
      f"{path} can't be read as Parquet: {error}: the file is damaged or cut;"
      " get or write it again, or take it out of the sources"
    ) from error


def _batches(path, file, limit, names) -> Iterator[Any]:
  for number in range(file.num_row_groups):
    group = file.metadata.row_group(number)
    columns = [group.column(i) for i in range(group.num_columns)]
    size = sum(
      column.total_uncompressed_size
      for column in columns
      if column.path_in_schema == COLUMN
    )
    mean = size // max(1, group.num_rows)
    if mean > limit + _PAGE_HEADER:
      what = f"each row of row group {number} of {path}"
      raise too_large(what, f"{mean:,} bytes on average", limit)
    rows = max(1, min(1024, _BATCH // max(1, mean)))
    yield from file.iter_batches(rows, row_groups=[number], columns=names)
