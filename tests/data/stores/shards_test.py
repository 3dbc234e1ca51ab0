import ctypes
import dataclasses
import mmap
import os
import shutil
import sys
import time

import numpy as np
import pytest
from tiny_gemma import SITES

from gemmascope_jax.data.stores import shards
from gemmascope_jax.data.stores.files import folder
from gemmascope_jax.data.stores.shard_writing import SiteWriter
from gemmascope_jax.data.stores.shards import CorruptStoreError
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_reading import LocalRows


def check(row):
  """Oracle: Python's integers over the row's bytes."""
  raw = row.tobytes()
  size = next(size for size in (8, 4, 2) if len(raw) % size == 0)
  words = [raw[i : i + size] for i in range(0, len(raw), size)]
  return sum(int.from_bytes(word, "little") for word in words) % 2**64


@pytest.mark.parametrize("width", [1, 2, 3, 4, 12, 2304])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_row_checks_are_sums_of_words(width, dtype):
  rows = np.random.default_rng(0).normal(size=(5, width))
  stored = shards.encode(rows, dtype)
  checks = shards.row_checks(stored)
  assert checks.dtype == np.uint64
  assert checks.tolist() == [check(row) for row in stored]


def test_every_single_bit_counts():
  stored = shards.encode(np.ones((1, 5)), "bfloat16")
  check = shards.row_checks(stored)
  for bit in range(8 * stored.nbytes):
    flipped = stored.copy()
    flipped.view(np.uint8)[0, bit // 8] ^= 1 << bit % 8
    assert shards.row_checks(flipped) != check


def test_marks_tell_stores_sites_and_shards_apart(store):
  other = dataclasses.replace(store.plan, weights_hash="other")
  marks = {
    int(shards.shard_mark(plan, site, shard))
    for plan in (store.plan, other)
    for site in SITES
    for shard in range(8)
  }
  assert len(marks) == 2 * len(SITES) * 8


def files(root, site, shard):
  return [
    root / name_of(site, shard)
    for name_of in (
      shards.rows_name,
      shards.checks_name,
      shards.moments_name,
      shards.sidecar_name,
    )
  ]


@pytest.fixture
def copy(store, tmp_path):
  return shutil.copytree(store.root, tmp_path / "copy")


def reads(root, row):
  """Every way of reading a row."""
  rows = np.array([row, 0, 1])
  yield lambda: Store.open(root).read("res.1", row - 3, row + 3)
  yield lambda: Store.open(root).gather("res.1", rows)
  yield lambda: Store.open(root).hold("res.1", rows).take(np.array([2, 0]))


@pytest.mark.parametrize("where", [0, 24, 47])
def test_an_altered_row_is_never_given(copy, where):
  path = copy / "res.1/00003.npy"
  raw = bytearray(path.read_bytes())
  raw[128 + 17 * 48 + where] ^= 4  # row 17 of the shard
  path.write_bytes(raw)
  for read in reads(copy, 3 * 128 + 17):
    with pytest.raises(CorruptStoreError, match=r"00003\.npy: row 17 is not"):
      read()
  opened = Store.open(copy)
  assert opened.read("res.1", 3 * 128 + 18, 900).shape == (498, 12)


def test_a_page_of_zeros_with_zero_checks_is_not_a_row(copy):
  for path in files(copy, "res.1", 3)[:2]:
    raw = path.read_bytes()
    path.write_bytes(raw[:128] + bytes(len(raw) - 128))
  for read in reads(copy, 390):
    with pytest.raises(CorruptStoreError, match=r"00003\.npy: row"):
      read()


def test_a_whole_shard_of_another_place_is_found_on_read(copy):
  # res.1 and mlp.1 are equally wide: all the files fit, and belong together.
  sources = files(copy, "mlp.1", 3)
  for source, target in zip(sources, files(copy, "res.1", 3), strict=True):
    shutil.copy(source, target)
  for read in reads(copy, 390):
    with pytest.raises(CorruptStoreError, match=r"res\.1/00003\.npy: row"):
      read()


@pytest.mark.parametrize(
  "old, new",
  [(b"(128, 12)", b"(12, 128)"), (b"<f4", b"<i4"), (b"False", b"True ")],
)
def test_a_header_that_lies(copy, old, new):
  path = copy / "res.1/00003.npy"
  raw = path.read_bytes()
  assert raw.count(old) == 1
  path.write_bytes(raw.replace(old, new))
  for read in reads(copy, 390):
    with pytest.raises(
      CorruptStoreError,
      match=r"00003\.npy is not float32\[128, 12\] .* another header",
    ):
      read()


def test_a_shard_that_is_cut_while_it_is_open(copy):
  opened = Store.open(copy)
  held = opened.hold("res.1", np.arange(900))
  held.take(np.array([400]))
  with open(copy / "res.1/00003.npy", "r+b") as file:
    file.truncate(1000)
  with pytest.raises(CorruptStoreError, match=r"00003\.npy was cut to 1,000 b"):
    held.take(np.array([400]))


def resident(path):
  """Share of a file that is in the system's page cache."""
  with open(path, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
  values = np.frombuffer(mapped, np.uint8)
  pages = np.zeros(-(-len(values) // mmap.PAGESIZE), np.uint8)
  failed = ctypes.CDLL(None).mincore(
    *(ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(len(values))),
    ctypes.c_void_p(pages.ctypes.data),
  )
  return None if failed else (pages & 1).mean()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into Linux's cache")
def test_held_rows_are_read_ahead(store, tmp_path):
  wide = dataclasses.replace(
    store.plan, sites=(("res.1", 4096),), rows=2048, rows_per_shard=1 << 20
  )
  rows = np.zeros((2048, 4096), np.float32)
  place = folder(tmp_path)
  with SiteWriter(place, wide, "res.1", [0]) as writer:
    writer.write(0, rows)
  path = tmp_path / "res.1/00000.npy"
  with open(path, "rb") as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  if resident(path) != 0:
    pytest.skip("this file system keeps its files in memory")
  LocalRows(place, wide).hold("res.1", np.arange(1024))
  for _ in range(100):
    if resident(path) > 0.49:
      break
    time.sleep(0.05)
  assert 0.49 < resident(path) < 0.75


@pytest.mark.parametrize("shard", [3, 7])
def test_held_rows_are_the_rows_in_any_order(store, shard):
  rows = np.random.default_rng(shard).permutation(900)[:700]
  whole = store.read("res.1", 0, 900)
  held = store.hold("res.1", rows)
  positions = np.random.default_rng(1).integers(0, 700, 300)
  taken = held.take(positions)
  assert taken.dtype == np.float32
  np.testing.assert_array_equal(taken, whole[rows[positions]])
  out = np.full((300, 12), np.nan, np.float32)
  assert held.take(positions, out=out) is out
  np.testing.assert_array_equal(out, taken)
  one_shard = np.flatnonzero(rows // 128 == shard)[::-1]
  np.testing.assert_array_equal(held.take(one_shard), whole[rows[one_shard]])
  assert held.take(positions[:0]).shape == (0, 12)
