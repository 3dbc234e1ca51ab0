import json
import shutil

import numpy as np
import pytest
import tiny_gemma
from tiny_gemma import POLICY, SITES

from gemmascope_jax.data.stores.shards import CorruptStoreError, decode, encode
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_plan import StoreMismatchError, StorePlan
from gemmascope_jax.data.text import documents


@pytest.fixture
def copy(store, tmp_path):
  """The folder of a finished store, to be damaged."""
  return shutil.copytree(store.root, tmp_path / "copy")


def test_read_any_range_across_shards(store):
  whole = store.read("res.1", 0, store.rows)
  assert whole.dtype == np.float32 and whole.shape == (900, 12)
  files = [
    np.load(store.root / "res.1" / f"{shard:05d}.npy") for shard in range(8)
  ]
  np.testing.assert_array_equal(whole, np.concatenate(files))
  for start, stop in [(0, 0), (5, 6), (100, 400), (127, 129), (896, 900)]:
    part = store.read("res.1", start, stop)
    np.testing.assert_array_equal(part, whole[start:stop])
  rows = np.array([899, 0, 128, 127, 0, 500])
  np.testing.assert_array_equal(store.gather("res.1", rows), whole[rows])


@pytest.mark.parametrize("start, stop", [(-1, 3), (0, 901), (5, 4)])
def test_rows_out_of_range(store, start, stop):
  with pytest.raises(ValueError, match=r"has rows 0\.\.899"):
    store.read("res.1", start, stop)
  with pytest.raises(ValueError, match=r"has rows 0\.\.899"):
    store.index(start, stop)


def test_index_is_the_kept_positions_in_order(store):
  expected = np.argwhere(POLICY.keep(np.array(store.tokens)))[:900]
  np.testing.assert_array_equal(store.index(0, 900), expected)
  for start, stop in [(0, 0), (3, 4), (14, 31), (0, 15), (15, 30), (880, 900)]:
    part = store.index(start, stop)
    assert part.dtype == np.int32
    np.testing.assert_array_equal(part, expected[start:stop])


def test_no_excluded_token_is_a_row_and_all_others_are(store):
  window, position = store.index(0, store.rows).T
  tokens = store.tokens[window, position]
  assert not set(tokens.tolist()) & set(POLICY.excluded_ids)
  kept = POLICY.keep(np.array(store.tokens)).sum()
  assert 0 <= kept - store.rows < store.plan.window


def test_rows_lead_back_to_documents(store):
  window, position = store.index(0, store.rows).T
  owners = store.documents[window, position]
  separators = store.tokens[window, position] == 3
  assert (owners[~separators] >= 0).all()
  assert len(store.keys) == owners.max() + 1
  assert store.manifest["sources"] == ["made up"]


def test_any_rows_are_traced_to_document_sequence_and_position(store):
  rows = np.random.default_rng(0).permutation(900)[:300]
  found = store.trace(rows)
  every = store.index(0, 900)
  np.testing.assert_array_equal(found.windows, every[rows, 0])
  np.testing.assert_array_equal(found.positions, every[rows, 1])
  np.testing.assert_array_equal(
    found.documents, store.documents[found.windows, found.positions]
  )
  known = found.documents >= 0
  assert known.any() and not known.all()
  np.testing.assert_array_equal(
    found.keys[known], store.keys[found.documents[known]]
  )
  texts = {documents.content_key(text): text for text in tiny_gemma.texts()}
  tokenizer = tiny_gemma.ByteTokenizer()
  for at in np.flatnonzero(known)[:50]:
    token = int(store.tokens[found.windows[at], found.positions[at]])
    assert token in tokenizer.encode(texts[int(found.keys[at])])
  with pytest.raises(ValueError, match="rows 5..900"):
    store.trace(np.array([5, 900]))


def test_statistics_are_those_of_the_rows(store):
  for site in SITES:
    rows = store.read(site, 0, store.rows).astype(np.float64)
    mean, square = store.statistics(site)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12, atol=1e-15)
    assert square == pytest.approx((rows**2).sum(axis=1).mean(), rel=1e-12)
    variance = ((rows - mean) ** 2).sum(axis=1).mean()
    assert store.total_variance(site) == pytest.approx(variance, rel=1e-9)
    entry = store.manifest["sites"][site]
    assert entry["mean_square_norm"] == square
    assert entry["total_variance"] == store.total_variance(site)


def test_manifest_says_what_the_store_is(store, lm):
  manifest = json.loads((store.root / "manifest.json").read_text())
  assert manifest["model"]["weights_hash"] == lm.weights_hash
  assert manifest["model"]["label"] == lm.label
  assert manifest["tokenizer"] == lm.tokenizer.fingerprint
  assert manifest["token_policy"] == POLICY.to_dict()
  assert manifest["config"] == {"note": "tests"}
  assert manifest["fingerprint"] == store.fingerprint
  assert manifest["code"]
  assert StorePlan.from_dict(manifest, store.root) == store.plan


def test_describe(store):
  text = store.describe()
  for part in (store.fingerprint, "tiny-0", "900 a site", *SITES, "made up"):
    assert part in text


def test_bfloat16_rows_are_rounded_once():
  rows = np.array([[1.0, 1.00390625, -3e38, 1e-30]], np.float32)
  stored = encode(rows, "bfloat16")
  assert stored.dtype == np.uint16
  np.testing.assert_allclose(decode(stored), rows, rtol=2**-8)
  assert decode(stored)[0, 0] == 1.0 and decode(stored)[0, 1] != rows[0, 1]


def test_verify_passes_and_opens_read_only(store):
  store.verify()


def damage_flip(path):
  raw = bytearray(path.read_bytes())
  raw[-5] ^= 1
  path.write_bytes(raw)


def damage_cut(path):
  path.write_bytes(path.read_bytes()[:-8])


def damage_remove(path):
  path.unlink()


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_remove])
@pytest.mark.parametrize(
  "name", ["res.1/00003.npy", "tokens.npy", "att.0/moments.npy"]
)
def test_verify_names_every_bad_file(copy, damage, name):
  damage(copy / name)
  damage(copy / "mlp.1/00007.npy")
  with pytest.raises(CorruptStoreError) as error:
    Store.open(copy).verify()
  assert str(copy / name) in str(error.value)
  assert "mlp.1/00007.npy" in str(error.value)
  assert "00002.npy" not in str(error.value)
  assert "run the same harvest again" in str(error.value)


@pytest.mark.parametrize("damage", [damage_cut, damage_remove])
def test_reading_a_short_or_missing_shard_names_it(copy, damage):
  damage(copy / "res.1/00003.npy")
  opened = Store.open(copy)
  assert opened.read("res.1", 0, 384).shape == (384, 12)
  for read in (
    lambda: opened.read("res.1", 380, 390),
    lambda: opened.gather("res.1", np.array([0, 400])),
    lambda: opened.hold("res.1", np.arange(900)),
  ):
    with pytest.raises(CorruptStoreError, match=r"res\.1/00003\.npy"):
      read()


def test_foreign_shard_is_refused(copy):
  shutil.copy(copy / "att.0/00003.npy", copy / "res.1/00003.npy")
  with pytest.raises(
    CorruptStoreError, match=r"is not float32\[128, 12\] in 6,272 b"
  ):
    Store.open(copy).read("res.1", 380, 390)


def test_unknown_site(store):
  with pytest.raises(ValueError, match=r"site res.7: .* holds res.1, att.0"):
    store.read("res.7", 0, 1)


def test_model_of_another_store(store, lm):
  store.require_model(lm)
  with pytest.raises(
    StoreMismatchError, match="from tiny-0 .* not from tiny-1"
  ):
    store.require_model(tiny_gemma.lm(1))


def test_no_store(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no store"):
    Store.open(tmp_path)


def test_other_formats_and_foreign_manifest(copy):
  manifest = json.loads((copy / "manifest.json").read_text())
  for number, remedy in (
    (99, "update gemmascope_jax"),
    (1, "harvest it again"),
  ):
    manifest["format"] = number
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"format {number}, .* {remedy}"):
      Store.open(copy)
  (copy / "manifest.json").write_text('{"kind": "other"}')
  with pytest.raises(ValueError, match="does not describe an activation store"):
    Store.open(copy)
  (copy / "manifest.json").write_text('{"kin')
  with pytest.raises(ValueError, match="not valid JSON"):
    Store.open(copy)


@pytest.mark.parametrize(
  "name, use",
  [
    ("row_starts.npy", lambda store: store.trace(np.arange(9))),
    ("tokens.npy", lambda store: store.tokens),
    ("documents.npy", lambda store: store.documents),
    ("keys.npy", lambda store: store.keys),
    ("res.1/moments.npy", lambda store: store.statistics("res.1")),
  ],
)
def test_side_files_are_compared_when_first_used(copy, name, use):
  raw = bytearray((copy / name).read_bytes())
  raw[-3] ^= 4
  (copy / name).write_bytes(raw)
  with pytest.raises(CorruptStoreError, match=f"{name} has other bytes"):
    use(Store.open(copy))


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(rows=901), "manifest.json is damaged"),
    (dict(files={}), "manifest.json is damaged"),
    (dict(sites={}), "manifest.json is damaged"),
    (dict(fingerprint="0"), "manifest.json is damaged"),
    (dict(model=None), "manifest.json is damaged"),
    (dict(format="2"), "has format 2, but"),
  ],
)
def test_an_altered_manifest_is_refused(copy, change, says):
  manifest = json.loads((copy / "manifest.json").read_text())
  (copy / "manifest.json").write_text(json.dumps(manifest | change))
  with pytest.raises(ValueError, match=says):
    Store.open(copy)


def test_checks_cut_while_they_are_open(copy):
  opened = Store.open(copy)
  opened.read("res.1", 0, 5)
  with open(copy / "res.1/00000.checks.npy", "r+b") as file:
    file.truncate(200)
  with pytest.raises(CorruptStoreError, match=r"checks\.npy was cut to 200"):
    opened.read("res.1", 0, 5)
