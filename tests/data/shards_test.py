import dataclasses
import shutil

import numpy as np
import pytest
from tiny_gemma import SITES

from gemmascope_jax.data import shards
from gemmascope_jax.data.shards import CorruptStoreError
from gemmascope_jax.data.store import Store


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
