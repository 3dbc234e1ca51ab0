import json
import os
import pathlib

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gemmascope_jax.data.lock import LockedError
from gemmascope_jax.data.stores import files, remote_files
from gemmascope_jax.data.stores.files import LocalFolder, folder
from gemmascope_jax.data.stores.remote_files import RemoteFolder


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
  """An empty folder of each kind."""
  if request.param == "local":
    return folder(tmp_path / "new")
  return folder(f"memory://{tmp_path.name}")


def test_kinds_of_folders(tmp_path):
  assert isinstance(folder(tmp_path), LocalFolder)
  assert isinstance(folder(str(tmp_path)), LocalFolder)
  assert folder(f"file://{tmp_path}").root == tmp_path
  remote = folder("memory://x/y/")
  assert isinstance(remote, RemoteFolder) and remote.root == "memory://x/y"
  assert folder(remote) is remote
  assert remote.path("a/b.npy") == "memory://x/y/a/b.npy"
  with pytest.raises(ValueError, match="Protocol not known: nowhere"):
    folder("nowhere://x")


def test_files_of_either_kind(place):
  assert place.sizes() == {} and place.entries() == []
  with pytest.raises(FileNotFoundError):
    place.read("a/x")
  with pytest.raises(FileNotFoundError):
    place.read_json("x.json")
  assert not place.exists("a/x")
  array = np.arange(6.0).reshape(2, 3)
  place.write_npy("a/x.npy", array)
  place.write_bytes("b", b"0123456789")
  place.write_json("x.json", {"b": [1]})
  assert place.sizes() == {"b": 10, "x.json": 23}
  assert place.sizes("a") == {"a/x.npy": 128 + 48}
  assert sorted(place.entries()) == ["a", "b", "x.json"]
  np.testing.assert_array_equal(place.array("a/x.npy"), array)
  assert place.read("b", 3, 5) == b"34" and place.read("b", 8, 99) == b"89"
  assert place.read("b", 4) == b"456789"
  assert place.read_json("x.json") == {"b": [1]}
  assert place.sha256("b").startswith("84d89877f0d4041e")  # sha256sum's
  place.rename("b", "a/x.npy")
  assert not place.exists("b") and place.read("a/x.npy")[:2] == b"01"
  place.remove("a/x.npy")
  place.remove("a/x.npy")
  assert place.sizes("a") == {}


def test_a_file_appears_whole_or_not_at_all(place):
  place.write_bytes("x", b"old")
  with pytest.raises(RuntimeError), place.write("x") as file:
    file.write(b"new")
    raise RuntimeError
  assert place.read("x") == b"old" and place.sizes() == {"x": 3}


def test_bad_json_names_the_file(place):
  place.write_bytes("x.json", b'{"a')
  with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
    place.read_json("x.json")


def test_one_writer_at_a_time(place):
  with place.lock("lock"):
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
      with place.lock("lock"):
        pass
    assert place.exists("lock")
  assert not place.exists("lock")


def test_remote_locks_of_others(tmp_path):
  place = folder(f"memory://{tmp_path.name}")
  gone = {"host": os.uname().nodename, "pid": 2**22 + 1}
  place.write_json("lock", gone)
  with place.lock("lock"):
    assert place.read_json("lock")["pid"] == os.getpid()
  place.write_json("lock", {"host": "elsewhere", "pid": 5})
  with pytest.raises(LockedError, match=r"process 5 on elsewhere; .* delete"):
    with place.lock("lock"):
      pass
  assert json.loads(place.read("lock"))["host"] == "elsewhere"


class Flaky(MemoryFileSystem):
  """Memory whose connection breaks now and then."""

  protocol = "flaky"
  failures: list = []

  def cat_file(self, path, start=None, end=None, **options):
    if self.failures:
      raise self.failures.pop()
    return super().cat_file(path, start=start, end=end, **options)


def test_a_broken_connection_is_tried_again(tmp_path, monkeypatch):
  fsspec.register_implementation("flaky", Flaky, clobber=True)
  monkeypatch.setattr(remote_files, "_PAUSE_S", 0.01)
  place = folder(f"flaky://{tmp_path.name}")
  place.write_bytes("x", b"12")
  Flaky.failures = [ConnectionResetError(), TimeoutError()]
  assert place.read("x") == b"12" and not Flaky.failures
  Flaky.failures = [PermissionError("no"), OSError()]
  with pytest.raises(PermissionError):
    place.read("x")
  Flaky.failures = [OSError("gone")] * 9
  with pytest.raises(OSError, match="gone"):
    place.read("x")
  assert len(Flaky.failures) == 9 - remote_files._TRIES
  Flaky.failures = []


def test_concurrently_keeps_order_and_raises_the_first_error():
  assert files.concurrently(lambda x: x * x, range(100)) == [
    x * x for x in range(100)
  ]
  assert files.concurrently(print, []) == []
  with pytest.raises(ZeroDivisionError):
    files.concurrently(lambda x: 1 // x, [1, 0, *range(1, 1000)])


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path):
  assert files.free_bytes(folder(tmp_path / "a" / "b")) > 0
  assert files.free_bytes(folder("memory://x")) > 0
  assert isinstance(folder(tmp_path).root, pathlib.Path)
