import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_gemma import POLICY, ByteTokenizer, texts

from gemmascope_jax.data import lock
from gemmascope_jax.data.text import documents
from gemmascope_jax.data.tokens import packing, token_chunks, token_files
from tests.data.tokens.tokens_and_die import make, mixed

TOKENIZER = ByteTokenizer()
SCRIPT = pathlib.Path(__file__).with_name("tokens_and_die.py")
FILES = {"key.json", "tokens.npy", "documents.npy", "keys.npy", "windows.json"}


def content(folder):
  assert {path.name for path in folder.iterdir()} == FILES
  found = {name: (folder / name).read_bytes() for name in FILES}
  # The checkout may change while the tests run.
  version = json.loads(found["windows.json"])["code_version"]
  found["windows.json"] = found["windows.json"].replace(version.encode(), b"")
  return found


def processes(*jobs):
  """What `tokens_and_die` printed for each job (folder, parts, *events)."""
  words = [
    f"{folder}:{parts}:{','.join(map(str, events))}"
    for folder, parts, *events in jobs
  ]
  ended = subprocess.run(
    [sys.executable, SCRIPT, *words],
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr
  *outputs, rest = ended.stdout.split("end of job\n")
  assert not rest and len(outputs) == len(jobs)
  return [output.splitlines() for output in outputs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A folder of many chunks that nobody disturbed, and its windows."""
  folder = tmp_path_factory.mktemp("tokens") / "whole"
  return folder, make(folder)


def assert_same(found, expected):
  for name in ("tokens", "documents", "keys"):
    one, other = getattr(found, name), getattr(expected, name)
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)
  assert found.sources == expected.sources
  assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
  "options",
  [{}, {"rows": 700}, {"windows": 9}, {"rows": 700, "windows": 9}]
  + [{"packed": False, "windows": 20}],
)
def test_one_chunk_gives_the_windows_of_pack(tmp_path, options):
  options = {"rows": None} | options
  expected = packing.pack(mixed(), TOKENIZER, 16, **options)
  found = make(tmp_path, chunk_characters=10**6, **options)
  assert_same(found, expected)
  assert isinstance(found.tokens, np.memmap)
  used = min(7, len(expected.tokens))
  assert found.take(used).fingerprint == expected.take(used).fingerprint
  assert found.take(10**9) is found


def by_chunks(characters, rows):
  """The oracle: each chunk packed in memory, the arrays put together."""
  tokens, owners, keys, kept = [], [], [], 0
  for chunk in token_chunks.cut(mixed(), characters):
    made = packing.pack(chunk, TOKENIZER, 16)
    for ids, owner in zip(made.tokens, made.documents, strict=True):
      if kept < rows:
        tokens.append(ids)
        owners.append(np.where(owner < 0, owner, owner + len(keys)))
        kept += POLICY.keep(ids[None]).sum()
    keys += [document.key for document in chunk]
  known = np.max(owners) + 1
  return packing.Windows(
    np.array(tokens, np.int32),
    np.array(owners, np.int32),
    np.array(keys[:known], np.uint64),
    ("a", "b"),
  )


def test_many_chunks_are_packed_each_by_itself(whole):
  folder, found = whole
  expected = by_chunks(300, 1500)
  # Which of the sources comes first is the order's affair.
  assert set(found.sources) == set(expected.sources)
  for name in ("tokens", "documents", "keys"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  assert found.fingerprint == expected.fingerprint
  index = json.loads((folder / "windows.json").read_text())
  assert index["windows"] == len(found.tokens)
  assert index["documents"] == len(found.keys)
  assert index["rows"] == POLICY.keep(found.tokens).sum() >= 1500
  assert index["sources"] == list(found.sources)


def test_chunks_are_cut_from_the_text_alone():
  text = texts(100)
  for characters in (1, 50, 300, 10**6):
    chunks = list(token_chunks.cut(text, characters))
    assert [d.text for chunk in chunks for d in chunk] == text
    sizes = [sum(len(d.text) for d in chunk) for chunk in chunks]
    assert all(size >= characters for size in sizes[:-1])
    for chunk, size in zip(chunks, sizes, strict=True):
      assert size - len(chunk[-1].text) < characters


def test_a_finished_folder_is_only_opened(whole, monkeypatch):
  folder, expected = whole
  before = content(folder)
  assert_same(make(folder), expected)
  # Neither text nor tokenizer is asked for anything.
  tokenizer = ByteTokenizer()
  monkeypatch.setattr(tokenizer, "encode", None, raising=False)
  assert_same(
    token_files.make(
      folder,
      None,
      tokenizer,
      16,
      key={"sources": "made up"},
      rows=1500,
      chunk_characters=300,
    ),
    expected,
  )
  assert content(folder) == before


def test_several_processes_make_the_same_bytes(whole, tmp_path):
  printed = processes((tmp_path / "2", 2), (tmp_path / "5", 5))
  assert [len(lines) for lines in printed] == [2, 5]
  for parts in ("2", "5"):
    assert content(tmp_path / parts) == content(whole[0])


def test_killed_at_any_moment_gives_the_same_bytes(whole, tmp_path):
  ((line,),) = processes((tmp_path / "alone", 1))
  events = int(line.split()[-1])
  assert events > 60
  # One folder, killed again and again; then one for each moment: at the start,
  # and while all the chunks are being joined.
  again = [*range(1, events, 7), *range(events - 15, events + 1)]
  moments = [1, 2, 3, 4, 5, *range(events - 32, events + 1, 3)]
  first, *others = processes(
    (tmp_path / "again", 1, *again),
    *((tmp_path / str(moment), 1, moment) for moment in moments),
  )
  assert sum(line.startswith("killed") for line in first) > 5
  assert content(tmp_path / "again") == content(whole[0])
  for moment, lines in zip(moments, others, strict=True):
    assert lines[0] == f"killed 0 {moment}"
    for left_over in (tmp_path / str(moment)).glob("key.json.*.incomplete"):
      left_over.unlink()  # the one thing that stays, of a kill at the start
    assert content(tmp_path / str(moment)) == content(whole[0])


def test_several_processes_killed_again_and_again(whole, tmp_path):
  (lines,) = processes((tmp_path / "t", 3, 3, 9, 14, 22, 31, 40))
  assert sum(line.startswith("killed") for line in lines) >= 9
  assert content(tmp_path / "t") == content(whole[0])


def test_finished_chunks_are_not_tokenised_again(tmp_path):
  class Counting(ByteTokenizer):
    encoded = 0

    def encode(self, text):
      if self.encoded == 40:
        raise KeyboardInterrupt
      self.encoded += 1
      return super().encode(text)

  options = dict(key={}, chunk_characters=300, progress=False)
  first, second = Counting(), Counting()
  with pytest.raises(KeyboardInterrupt):
    token_files.make(tmp_path, mixed, first, 16, **options)
  finished = len(list((tmp_path / "chunks").glob("*.json")))
  assert finished >= 2
  second.encoded = -(10**6)
  token_files.make(tmp_path, mixed, second, 16, **options)
  chunks = list(token_chunks.cut(mixed(), 300))
  # A document, and the separator that packing encodes once a chunk.
  expected = sum(len(chunk) + 1 for chunk in chunks[finished:])
  assert second.encoded + 10**6 == expected


def test_another_key_is_refused_and_says_what_differs(whole):
  folder = whole[0]
  with pytest.raises(
    token_files.TokensMismatchError, match="its rows is 1500, not 9. Use anoth"
  ):
    make(folder, rows=9)
  with pytest.raises(
    token_files.TokensMismatchError, match="its chunk_characters is 300, not 4"
  ):
    make(folder, chunk_characters=4)
  with pytest.raises(
    token_files.TokensMismatchError,
    match="its documents.sources is made up, not others",
  ):
    token_files.make(folder, mixed, TOKENIZER, 16, key={"sources": "others"})


def stop_after_two_chunks(folder, **options):
  with pytest.raises(TimeoutError, match="waited 0 s for chunk 1 of process 1"):
    make(folder, part=(0, 2), timeout_s=0, **options)


def test_a_process_that_does_not_come_is_waited_for_and_named(whole, tmp_path):
  stop_after_two_chunks(tmp_path)
  made = {int(p.stem) for p in (tmp_path / "chunks").glob("*.json")}
  # It did about its half of what is needed, not the whole text.
  needed = sum(1 for _ in token_chunks.cut(mixed(), 300))
  assert made == set(range(0, 2 * len(made), 2)) and len(made) <= needed / 2
  make(tmp_path, part=(1, 2), timeout_s=0)
  assert content(tmp_path) == content(whole[0])


def test_a_text_without_budget_is_shared_to_its_end(tmp_path):
  options = dict(rows=None, timeout_s=0)
  with pytest.raises(TimeoutError, match="waited 0 s for chunk 1 of process 1"):
    make(tmp_path / "shared", part=(0, 2), **options)
  found = make(tmp_path / "shared", part=(1, 2), **options)
  assert_same(found, make(tmp_path / "alone", rows=None))
  assert_same(make(tmp_path / "shared", part=(0, 2), **options), found)
  assert len(found.keys) == len(list(mixed()))


def test_text_that_changed_meanwhile_is_refused(tmp_path):
  stop_after_two_chunks(tmp_path)
  options = dict(key={"sources": "made up"}, rows=1500, chunk_characters=300)
  for other in (list(mixed())[1:], list(mixed())[:3]):
    with pytest.raises(
      token_files.TokensMismatchError, match="text has changed since its chunk"
    ):
      token_files.make(
        tmp_path, lambda o=other: o, TOKENIZER, 16, progress=False, **options
      )


def test_damage_is_found(whole, tmp_path):
  stop_after_two_chunks(tmp_path)
  damaged = tmp_path / "chunks" / "0000002.tokens.npy"
  raw = bytearray(damaged.read_bytes())
  raw[-1] ^= 1
  damaged.write_bytes(raw)
  with pytest.raises(ValueError, match="0000002.tokens.npy is damaged"):
    make(tmp_path)
  (tmp_path / "chunks" / "0000002.json").unlink()
  make(tmp_path)
  assert content(tmp_path) == content(whole[0])
  for name in ("tokens.npy", "documents.npy", "keys.npy"):
    raw = bytearray((tmp_path / name).read_bytes())
    raw[-1] ^= 1
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match="other tokens than its windows.json"):
      make(tmp_path)
    raw[-1] ^= 1
    (tmp_path / name).write_bytes(raw)
  make(tmp_path)


def test_two_makers_of_one_chunk_are_refused(tmp_path):
  with lock.write_lock(tmp_path / "chunks", "0000000.lock"):
    with pytest.raises(lock.LockedError, match="is being written by process"):
      make(tmp_path)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(rows=10**6), r"ends after [\d,]+ rows .* 1,000,000 were asked"),
    (dict(rows=None, windows=10**6), "windows, but 1,000,000"),
    (dict(rows=0), "rows 0: expected at least 1"),
    (dict(chunk_characters=0), "chunk_characters 0: expected at least 1"),
    (dict(part=(2, 2)), r"part \(2, 2\): expected \(p, n\)"),
  ],
)
def test_bad_arguments(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    make(tmp_path, **options)


@pytest.mark.parametrize("text", [[], [""], ["", ""]])
def test_no_text(tmp_path, text):
  with pytest.raises(ValueError, match="no text"):
    token_files.make(tmp_path, lambda: text, TOKENIZER, 16, key={})


def test_an_endless_text_is_read_no_further_than_needed(tmp_path):
  read = 0

  def endless():
    nonlocal read
    for number in range(10**9):
      read += 1
      yield documents.Document(f"text {number}", "endless", number)

  made = token_files.make(
    tmp_path, endless, TOKENIZER, 16, key={}, windows=30, chunk_characters=50
  )
  assert len(made.tokens) == 30 and read < 70


@pytest.mark.parametrize("damage", ["{}", "[]", "cut", "\xff", "sha256", ""])
def test_a_chunk_with_a_damaged_sidecar_is_made_anew(
  whole, tmp_path, caplog, damage
):
  stop_after_two_chunks(tmp_path)
  path = tmp_path / "chunks" / "0000002.json"
  text = path.read_text()
  value = json.loads(text) | {"sha256": {}}
  damaged = {"cut": text[:40], "sha256": json.dumps(value)}
  path.write_bytes(damaged.get(damage, damage).encode("latin-1"))
  with caplog.at_level("WARNING"):
    make(tmp_path)
  assert content(tmp_path) == content(whole[0])
  (record,) = caplog.records
  assert "0000002.json is damaged" in record.getMessage()


@pytest.mark.parametrize("name", ["key.json", "windows.json"])
@pytest.mark.parametrize("damage", ["[]", "cut", "\xff", "", "lacks"])
def test_damaged_descriptions_say_what_to_delete(whole, tmp_path, name, damage):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  path = tmp_path / name
  text = path.read_text()
  if damage == "lacks" and name == "key.json":
    path.write_text("{}")  # like any other key that differs
    with pytest.raises(ValueError, match="its format is None, not 1.*delete"):
      make(tmp_path)
    return
  fields = ("format", "fingerprint") if damage == "lacks" else ("",)
  for field in fields:
    lacking = {k: v for k, v in json.loads(text).items() if k != field}
    damaged = {"cut": text[:40], "lacks": json.dumps(lacking)}
    path.write_bytes(damaged.get(damage, damage).encode("latin-1"))
    with pytest.raises(ValueError) as error:
      make(tmp_path)
    assert f"{path} is damaged" in str(error.value)
    assert f"delete the folder {tmp_path} and run" in str(error.value)
    assert not field or f"it lacks {field}" in str(error.value)


def test_an_empty_array_file_is_damage(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  (tmp_path / "tokens.npy").write_bytes(b"")
  with pytest.raises(ValueError, match="other tokens than its windows.json"):
    make(tmp_path)
