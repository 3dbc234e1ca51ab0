import tracemalloc

import pytest

from gemmascope_jax.data.text import text_files


def read(path, limit=1 << 20):
  for file in text_files.find(str(path)):
    yield from text_files.read(file, limit)


def test_files(tmp_path):
  (tmp_path / "b.txt").write_text("one\n\ndocument", encoding="utf-8")
  (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y", "n": 1}\n')
  (tmp_path / "ignored.md").write_text("no")
  assert list(read(tmp_path / "b.txt")) == ["one\n\ndocument"]
  assert list(read(tmp_path)) == ["x", "y", "one\n\ndocument"]


def test_parquet(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow as pa

  path = tmp_path / "a.parquet"
  parquet.write_table(pa.table({"text": ["x", "y"], "n": [1, 2]}), path)
  assert list(read(path)) == ["x", "y"]
  parquet.write_table(pa.table({"body": ["x"]}), path)
  with pytest.raises(ValueError, match=r"column 'text' \(columns: body\)"):
    list(read(path))


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"body": "x"}', r"line 1: no text in column 'text' .*body"),
    ("a.jsonl", b"[1]", "line 1: no text in column"),
    (
      "a.jsonl",
      b"\n" + b"[" * 100_000,
      "line 2: nested too deeply .*delete it",
    ),
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
    list(read(source))


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    list(read(tmp_path / "nothing.txt"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_huge_document_is_refused_before_it_is_read(tmp_path, name):
  with open(tmp_path / name, "wb") as file:
    if name == "a.jsonl":
      file.write(b'{"text": "x"}\n')
    file.truncate(1 << 40)  # of zeros, that take no room
  documents = read(tmp_path, 20 << 20)
  tracemalloc.start()
  with pytest.raises(ValueError) as error:
    list(documents)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 5 << 20
  where = {"a.txt": "a.txt is one", "a.jsonl": "a.jsonl, line 2, is one"}[name]
  assert where in str(error.value)
  assert "max_document_bytes is 20,971,520: cut it into" in str(error.value)
  assert "the binaries have no setting for it" in str(error.value)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
@pytest.mark.parametrize("length", [5, 3 << 20])
def test_lines_up_to_the_limit_are_read(tmp_path, length, end):
  path, long = tmp_path / "a.jsonl", "é" * length
  path.write_bytes(f'{{"text": "a"}}\n{{"text": "{long}"}}{end}'.encode())
  size = len(f'{{"text": "{long}"}}'.encode()) + ("\r" in end)
  assert list(read(path, size)) == ["a", long]
  with pytest.raises(
    ValueError, match="a.jsonl, line 2, is one document of ov"
  ):
    list(read(path, size - 1))


def test_large_values_of_parquet_are_refused(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow as pa

  path = tmp_path / "a.parquet"
  texts = ["x", "y" * 300_000, "z"]
  for compression in ("none", "snappy"):
    for kind in (pa.string(), pa.large_string()):
      table = pa.table({"text": pa.array(texts, kind)})
      parquet.write_table(table, path, compression=compression)
      assert list(read(path, 300_000)) == texts
      with pytest.raises(
        ValueError, match="a.parquet, row 2 is one document o"
      ):
        list(read(path, 299_999))
      # Not even read: this is known from the file's description.
      with pytest.raises(
        ValueError, match="each row of row group 0 of .* aver"
      ):
        list(read(path, 1))
  table = pa.table({"text": pa.array(texts * 1000).dictionary_encode()})
  parquet.write_table(table, path, row_group_size=700)
  assert list(read(path)) == texts * 1000
  parquet.write_table(pa.table({"text": [1]}), path)
  with pytest.raises(ValueError, match="it is of type int64"):
    list(read(path))
  parquet.write_table(pa.table({"text": ["x", None]}), path)
  with pytest.raises(ValueError, match="row 2: no text in column"):
    list(read(path))
  path.write_bytes(b"PAR1 but no more")
  with pytest.raises(ValueError, match="a.parquet can't be read as Parquet"):
    list(read(path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_empty_files(tmp_path, name):
  if name == "a.parquet":
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"text": pa.array([], pa.string())})
    pyarrow.parquet.write_table(table, tmp_path / name)
  else:
    (tmp_path / name).write_bytes(b"")
  assert list(read(tmp_path)) == ([""] if name == "a.txt" else [])


def test_a_byte_order_mark_is_no_text(tmp_path):
  mark = b"\xef\xbb\xbf"
  (tmp_path / "a.txt").write_bytes(mark + b"x\r\ny")
  (tmp_path / "b.jsonl").write_bytes(mark + b'{"text": "z"}\n{"text": "w"}')
  (tmp_path / "c.jsonl").write_bytes(mark + b'\n{"text": "v"}')
  assert list(read(tmp_path)) == ["x\ny", "z", "w", "v"]


def test_integers_of_any_length_are_passed_over(tmp_path):
  digits = "1" * 5000
  path = tmp_path / "a.jsonl"
  path.write_text(f'{{"text": "x", "n": {digits}, "m": -{digits}}}')
  assert list(read(path)) == ["x"]
  path.write_text(f'{{"text": {digits}}}')
  with pytest.raises(ValueError, match="line 1: no text in column 'text'"):
    list(read(path))


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_a_damaged_page_names_the_file(tmp_path, compression):
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow as pa

  path = tmp_path / "a.parquet"
  texts = [f"{i} some text" * 9 for i in range(3000)]
  table = pa.table({"text": texts})
  parquet.write_table(
    table, path, compression=compression, use_dictionary=False
  )
  raw = bytearray(path.read_bytes())
  middle = len(raw) // 2
  raw[middle : middle + 300] = b"\xff" * 300
  path.write_bytes(raw)
  with pytest.raises(
    ValueError, match=r"a\.parquet.* damaged .*write it again"
  ):
    list(read(path))


def test_a_folder_of_more_than_files(tmp_path, caplog):
  (tmp_path / "x.txt").mkdir()
  (tmp_path / "x.txt" / "y.TXT").write_text("y")
  (tmp_path / "z.JsonL").write_text('{"text": "z"}')
  names = ("a.csv", "b.CSV", "c.gz", "README")
  with caplog.at_level("WARNING"):
    assert list(read(tmp_path)) == ["y", "z"]
    assert not caplog.records
    for name in names:
      (tmp_path / name).write_text("ignored")
    for _ in range(2):
      assert list(read(tmp_path)) == ["y", "z"]
  (record,) = caplog.records
  assert (
    f"{tmp_path}: 2 files read, 4 ignored (.csv, .gz, no ending)"
    in record.getMessage()
  )


def test_links(tmp_path):
  (tmp_path / "there").write_text("x")
  folder = tmp_path / "folder"
  folder.mkdir()
  (folder / "a.txt").symlink_to(tmp_path / "there")
  assert list(read(folder)) == ["x"]
  (folder / "b.txt").symlink_to(tmp_path / "gone")
  for source in (folder, folder / "b.txt"):
    with pytest.raises(
      FileNotFoundError, match=r"b\.txt is a link to .*gone, .*delete the link"
    ):
      list(read(source))


def test_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "a.txt").write_text("x")
  assert list(read("~/a.txt")) == ["x"]
