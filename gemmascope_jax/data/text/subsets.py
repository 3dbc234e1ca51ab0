"""Named subsets of a mixed corpus: The Pile's, as in the paper's figure 9.

`pile` reads the corpus itself, whose rows say which subset they are of.
`stand_ins` gives text of installed packages in place of each subset, for a
machine without the corpus: another text of the same kind, or of a kind that
comes near, as each says.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Sequence

from gemmascope_jax.data.text import documents, packaged_texts, texts
from gemmascope_jax.data.text.documents import Document

PILE_LABEL = "meta.pile_set_name"
# The paper's name of each subset, and The Pile's.
PILE = {
  "wikipedia_en": "Wikipedia (en)",
  "europarl": "EuroParl",
  "openwebtext2": "OpenWebText2",
  "arxiv": "ArXiv",
  "freelaw": "FreeLaw",
  "hackernews": "HackerNews",
  "dm_mathematics": "DM Mathematics",
  "github": "Github",
}


@dataclasses.dataclass(frozen=True)
class Subset:
  """One subset, and what its text is.

  Attributes:
    name: the paper's.
    sources: names that `texts.read` knows; empty if there is no text.
    stand_in: None if the text is the subset's own; else what it is instead.
    note: which sources can't be read, why and what to do; "" if all can.
  """

  name: str
  sources: tuple[str, ...]
  stand_in: str | None = None
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Several subsets and a way to read them.

  Attributes:
    subsets: by name, also those without text.
    read: from the set of names that are wanted, which may shrink as it is
      read, and the names of sources of which only held-out documents will do,
      to (subset, document), until nothing more is wanted.
    held_out: share of the documents that are held out of those sources.
  """

  subsets: dict[str, Subset]
  read: Callable[[Collection[str], Collection[str]], Iterator]
  held_out: float = documents.HELD_OUT


def pile(
  source: str,
  names: Sequence[str] = tuple(PILE),
  *,
  label: str = PILE_LABEL,
  held_out: float = documents.HELD_OUT,
  max_document_bytes: int = texts.MAX_DOCUMENT_BYTES,
) -> Corpus:
  """Subsets of The Pile, read in one pass as long as one of them is wanted.

  Args:
    source: "hf:monology/pile-uncopyrighted" (without the subsets whose rights
      are in doubt), or "file:PATH" of its .jsonl or .parquet files, or any
      corpus that labels its rows alike.
    names: of the subsets, keys of `PILE`.
    label: where a row says its subset, see `text_files.label_of`.
    held_out: share of the documents that are held out, where an SAE was
      trained on the same source: as for `documents.mix`.
    max_document_bytes: as for `texts.read`.

  Raises:
    ValueError: an unknown subset.
  """
  wanted = _known(names)
  of_label = {PILE[name]: name for name in wanted}

  def read(wanted, only_held_out):
    only = source in only_held_out
    for found, text in texts.read_labelled(source, label, max_document_bytes):
      if not wanted:
        return
      name = of_label.get(found)
      if name not in wanted or not text.strip():
        continue
      if only and documents.split_of(text, held_out) == "train":
        continue
      yield name, Document(text, source, documents.content_key(text))

  subsets = {name: Subset(name, (source,)) for name in wanted}
  return Corpus(subsets, read, held_out)


def _known(names: Sequence[str]) -> list[str]:
  unknown = [name for name in names if name not in PILE]
  if unknown or not names:
    raise ValueError(
      f"subsets {', '.join(unknown) or '(none)'}: expected some of"
      f" {', '.join(PILE)}"
    )
  return list(dict.fromkeys(names))


# Sources of `packaged_texts` for each subset, and what they are.
_STAND_INS: dict[str, tuple[tuple[str, ...], str]] = {
  "wikipedia_en": (
    ("wikipedia_en",),
    "first paragraphs of Wikipedia's vital articles, not whole articles",
  ),
  "europarl": (
    ("parliament_de", "parliament_es", "parliament_nl", "parliament_en"),
    "speeches of four national parliaments, not of the European one",
  ),
  "openwebtext2": (
    ("news",),
    "newspaper articles of 2016-17, not pages that Reddit links to",
  ),
  "arxiv": (
    ("science",),
    "first paragraphs of encyclopedia articles on science, not papers",
  ),
  "freelaw": (("legal",), "software licences, not court opinions"),
  "hackernews": ((), "no package with discussions of a forum is known"),
  "dm_mathematics": (
    ("dm_mathematics",),
    "problems of the same generator and settings, not The Pile's own draw",
  ),
  "github": (
    ("python_code",),
    "Python's standard library, not repositories in many languages",
  ),
}


def stand_ins(
  folder: str | os.PathLike | None = None,
  names: Sequence[str] = tuple(PILE),
  *,
  held_out: float = documents.HELD_OUT,
  seed: int = 0,
) -> Corpus:
  """Text of installed packages in place of The Pile's subsets.

  A source whose package is not installed is left out, and its subset says so.

  Args:
    folder: where packaged sources are installed; see `packaged_texts.find`.
    names: of the subsets, keys of `PILE`.
    held_out: as for `documents.mix`.
    seed: of the order of the documents.

  Raises:
    ValueError: an unknown subset.
    FileNotFoundError: no source at all is there.
  """
  subsets = {name: _stand_in(name, folder) for name in _known(names)}
  if not any(subset.sources for subset in subsets.values()):
    notes = [f"{s.name}: {s.note or s.stand_in}" for s in subsets.values()]
    raise FileNotFoundError(
      "no text for any subset; install a package, or read The Pile itself"
      f" (`subsets.pile`). {'. '.join(notes)}"
    )

  def read(wanted, only_held_out):
    for name, subset in subsets.items():
      if name not in wanted or not subset.sources:
        continue
      only = set(subset.sources) & set(only_held_out)
      # All documents are held out if the share of those that are is 1.
      mixed = documents.mix(
        subset.sources,
        "held_out",
        folder=folder,
        held_out=held_out if only else 1.0,
        seed=seed,
      )
      try:
        for document in mixed:
          yield name, document
          if name not in wanted:
            break
      except documents.NoTextError:
        pass  # of this subset: the others go on

  return Corpus(subsets, read, held_out)


def _stand_in(name: str, folder) -> Subset:
  sources, what = _STAND_INS[name]
  there: list[str] = []
  missing = {} if sources else {name: what}
  for source in sources:
    try:
      packaged_texts.find(source, folder)
    except (FileNotFoundError, ModuleNotFoundError) as error:
      # Of several sources in one package the first gives the reason.
      missing.setdefault(packaged_texts.SOURCES[source].wheel, str(error))
    else:
      there.append(source)
  return Subset(name, tuple(there), what, "; ".join(missing.values()))
