"""A store that is elsewhere: made there, read there, without fetching it."""

import collections
import shutil

import fsspec
import numpy as np
import pytest
import tiny_gemma
from fsspec.implementations.local import LocalFileSystem
from tiny_gemma import OPTIONS, POLICY, SITES

from gemmascope_jax import artifacts
from gemmascope_jax.data.lock import LockedError
from gemmascope_jax.data.stores.harvest import harvest
from gemmascope_jax.data.stores.shards import CorruptStoreError
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_plan import StoreMismatchError
from gemmascope_jax.data.streams.stream import StoreStream


class Counted(LocalFileSystem):
  """The local disk as if it were elsewhere; counts the bytes read of files."""

  protocol = "counted"
  fetched: collections.Counter = collections.Counter()

  def cat_file(self, path, start=None, end=None, **options):
    content = super().cat_file(path, start=start, end=end, **options)
    self.fetched[path.rpartition("/")[2]] += len(content)
    return content


fsspec.register_implementation("counted", Counted, clobber=True)


@pytest.fixture
def copy(store, tmp_path):
  """(folder, URL) of a finished store, and nothing counted yet."""
  root = shutil.copytree(store.root, tmp_path / "copy")
  Counted.fetched.clear()
  return root, f"counted://{root}"


def test_reads_what_the_local_store_reads(store, copy):
  remote = Store.open(copy[1])
  assert remote.fingerprint == store.fingerprint
  assert str(remote.root) == copy[1]
  rows = np.random.default_rng(0).integers(0, 900, 500)
  for site in SITES:
    np.testing.assert_array_equal(
      remote.read(site, 100, 700), store.read(site, 100, 700)
    )
    np.testing.assert_array_equal(
      remote.gather(site, rows), store.gather(site, rows)
    )
    held = remote.hold(site, rows)
    positions = np.array([499, 0, 3, 3])
    out = np.empty((4, store.width(site)), np.float32)
    assert held.take(positions, out=out) is out
    np.testing.assert_array_equal(out, store.gather(site, rows[positions]))
    assert remote.read(site, 5, 5).shape == (0, store.width(site))
  np.testing.assert_array_equal(remote.index(0, 900), store.index(0, 900))
  assert remote.describe().splitlines()[1:] == store.describe().splitlines()[1:]


def test_only_the_rows_asked_for_are_fetched(copy):
  remote = Store.open(copy[1])
  Counted.fetched.clear()
  remote.gather("res.1", np.array([5, 130, 131, 132, 899]))
  assert Counted.fetched == {
    "00000.npy": 48,
    "00000.checks.npy": 8,
    "00001.npy": 3 * 48,
    "00001.checks.npy": 3 * 8,
    "00007.npy": 48,
    "00007.checks.npy": 8,
  }


def test_batches_are_those_of_the_local_store(store, copy):
  local = StoreStream(store, "res.1", 64)
  remote = StoreStream(Store.open(copy[1]), "res.1", 64)
  assert remote.fingerprint == local.fingerprint
  for step in (0, 13, 14, 40):  # 900 rows are 14.06 batches
    np.testing.assert_array_equal(remote.batch(step), local.batch(step))


@pytest.mark.parametrize("kind", ["flip", "cut", "remove", "foreign"])
def test_damage_is_found_on_read_and_by_verify(copy, kind):
  root, url = copy
  path = root / "res.1/00003.npy"
  raw = bytearray(path.read_bytes())
  if kind == "flip":
    raw[-5] ^= 1
  elif kind == "cut":
    raw = raw[:-8]
  elif kind == "foreign":
    for name in ("npy", "checks.npy", "moments.npy", "json"):
      shutil.copy(root / f"mlp.1/00003.{name}", root / f"res.1/00003.{name}")
    raw = path.read_bytes()
  path.write_bytes(raw) if kind != "remove" else path.unlink()
  remote = Store.open(url)
  assert remote.read("res.1", 0, 384).shape == (384, 12)
  for read in (
    lambda: remote.read("res.1", 384, 512),
    lambda: remote.gather("res.1", np.array([0, 511])),
    lambda: remote.hold("res.1", np.arange(900)),
    remote.verify,
  ):
    with pytest.raises(CorruptStoreError, match=r"counted://.*res\.1/00003\."):
      read()


def make(lm, url, **options):
  return harvest(
    lm, tiny_gemma.windows(), SITES, url, POLICY, **{**OPTIONS, **options}
  )


def test_made_elsewhere_with_the_same_bytes(lm, store, tmp_path):
  root = tmp_path / "remote"
  url = f"counted://{root}"
  # Its parts in turn, each killed, so to speak, before the others are there.
  for part in range(3):
    with pytest.raises(TimeoutError):
      make(lm, url, part=(part, 4), patience_s=0)
  made = make(lm, url)
  made.verify()
  assert str(made.root) == url
  for path in store.root.rglob("*"):
    if path.is_file() and path.name != "manifest.json":
      copy = root / path.relative_to(store.root)
      assert copy.read_bytes() == path.read_bytes(), path
  names = {path.relative_to(root) for path in root.rglob("*")}
  assert names == {
    path.relative_to(store.root) for path in store.root.rglob("*")
  }
  assert make(lm, url).fingerprint == store.fingerprint
  with pytest.raises(StoreMismatchError, match="its rows is 900, not 800"):
    make(lm, url, rows=800)
  (root / "manifest.json").unlink()
  (root / "writer.lock").write_text('{"host": "elsewhere", "pid": 5}')
  with pytest.raises(LockedError, match="process 5 on elsewhere"):
    make(lm, url)


def test_room_for_what_waits_to_be_sent(lm, tmp_path, monkeypatch):
  # Two shards of each of three sites: 2 x (128 x (12 + 16 + 12) x 4 + 3 x 128).
  usage = shutil.disk_usage(tmp_path)
  room = lambda free: lambda _: usage._replace(free=free)
  monkeypatch.setattr(shutil, "disk_usage", room(41_727))
  with pytest.raises(artifacts.OutOfDiskError, match="TMPDIR says which disk"):
    make(lm, f"memory://{tmp_path.name}")
  monkeypatch.setattr(shutil, "disk_usage", room(41_728))
  assert make(lm, f"memory://{tmp_path.name}").rows == 900


def test_in_memory(lm, store, tmp_path):
  url = f"memory://{tmp_path.name}"
  made = make(lm, url, dtype="bfloat16")
  made.verify()
  np.testing.assert_allclose(
    Store.open(url).read("res.1", 0, 900),
    store.read("res.1", 0, 900),
    rtol=2**-8,
  )
  with pytest.raises(FileNotFoundError, match="holds no store"):
    Store.open(url + "x")
