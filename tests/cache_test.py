"""The cache folder and remembered hashes."""

import hashlib
import os
import time

import pytest

from gemmascope_jax import artifacts, cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch):
  """The files that were read to be hashed."""
  read = []
  original = artifacts.sha256_file

  def counted(path):
    read.append(os.fspath(path))
    return original(path)

  monkeypatch.setattr(artifacts, "sha256_file", counted)
  return read


def _write(path, data, age=10):
  path.write_bytes(data)
  then = time.time() - age
  os.utime(path, (then, then))


def _settle(monkeypatch):
  """As if an hour passed: no file changed a moment ago."""
  now = time.time_ns
  monkeypatch.setattr(cache.time, "time_ns", lambda: now() + 3600 * 10**9)


def test_the_folder_is_the_environments(folder):
  assert cache.folder("a", "b") == folder / "a" / "b"
  assert (folder / "a" / "b").is_dir()


def test_the_default_folder(monkeypatch, tmp_path):
  monkeypatch.delenv("GEMMASCOPE_CACHE")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert cache.folder() == tmp_path / ".cache" / "gemmascope_jax"


def test_a_folder_that_cannot_be_made_names_the_variable(folder, tmp_path):
  folder.write_text("a file is in the way")
  with pytest.raises(OSError, match="GEMMASCOPE_CACHE"):
    cache.folder("a")
  _write(tmp_path / "x", b"data")
  # Hashes are only slower without a cache.
  assert cache.file_hash(tmp_path / "x") == hashlib.sha256(b"data").hexdigest()


def test_a_hash_is_remembered(tmp_path, hashed, monkeypatch):
  _settle(monkeypatch)
  _write(tmp_path / "x", b"data")
  expected = hashlib.sha256(b"data").hexdigest()
  assert cache.file_hash(tmp_path / "x") == expected
  assert cache.file_hash(tmp_path / "x") == expected
  assert len(hashed) == 1


def test_a_file_just_changed_is_not_remembered(tmp_path, hashed):
  # Its time of change could stay the same when it changes again.
  _write(tmp_path / "x", b"data")
  cache.file_hash(tmp_path / "x")
  cache.file_hash(tmp_path / "x")
  assert len(hashed) == 2


@pytest.mark.parametrize("change", ["content", "replaced", "size"])
def test_a_changed_file_is_hashed_again(tmp_path, hashed, monkeypatch, change):
  _settle(monkeypatch)
  path = tmp_path / "x"
  _write(path, b"data")
  stat = path.stat()
  cache.file_hash(path)
  data = b"more data" if change == "size" else b"DATA"
  if change == "replaced":
    (tmp_path / "y").write_bytes(data)
    os.replace(tmp_path / "y", path)
  else:
    path.write_bytes(data)
  # Even with its time of modification set back.
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert cache.file_hash(path) == hashlib.sha256(data).hexdigest()
  assert len(hashed) == 2


def test_a_damaged_record_is_ignored(tmp_path, folder, hashed, monkeypatch):
  _settle(monkeypatch)
  _write(tmp_path / "x", b"data")
  cache.file_hash(tmp_path / "x")
  (record,) = (folder / "hashes").iterdir()
  for text in ("{", "[]", '{"identity": 3}'):
    record.write_text(text)
    digest = cache.file_hash(tmp_path / "x")
    assert digest == hashlib.sha256(b"data").hexdigest()


def test_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    cache.file_hash(tmp_path / "x")
