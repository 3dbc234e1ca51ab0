import dataclasses
import errno
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gemma
from tiny_gemma import OPTIONS, POLICY, SITES, ByteTokenizer

from gemmascope_jax import artifacts, gemma
from gemmascope_jax.data.lock import LockedError, write_lock
from gemmascope_jax.data.stores import forward, store_checking
from gemmascope_jax.data.stores.harvest import harvest, plan
from gemmascope_jax.data.stores.shards import CorruptStoreError, decode, encode
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_plan import StoreMismatchError
from gemmascope_jax.data.stores.store_writing import LOCK
from gemmascope_jax.data.tokens import packing
from gemmascope_jax.throughput import Meter
from tests.digests import digests

SCRIPT = pathlib.Path(__file__).with_name("harvest_and_die.py")


def contents(root):
  """Of every file; the code version apart, which may change meanwhile."""
  files = digests(root)
  if "manifest.json" in files:
    manifest = json.loads((pathlib.Path(root) / "manifest.json").read_text())
    del manifest["code"], manifest["config"]
    files["manifest.json"] = manifest
  return files


def run(lm, root, windows=None, sites=SITES, policy=POLICY, **options):
  windows = tiny_gemma.windows() if windows is None else windows
  return harvest(lm, windows, sites, root, policy, **{**OPTIONS, **options})


def direct(lm, tokens, site, mask=None):
  """Oracle: the whole model, all windows at once."""
  forward = jax.jit(
    lambda params, tokens, mask: gemma.forward(
      lm.config, params, tokens, taps=[site], mask=mask
    )
  )
  return np.asarray(forward(lm.params, jnp.asarray(tokens), mask).acts[site])


@pytest.mark.parametrize("site", SITES)
def test_rows_are_the_activations(store, lm, site):
  acts = direct(lm, store.tokens, site)
  window, position = store.index(0, store.rows).T
  np.testing.assert_allclose(
    store.read(site, 0, store.rows), acts[window, position], rtol=0, atol=1e-5
  )
  assert acts.std() > 0.05  # or that tolerance says nothing


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_windows(lm, tmp_path, side):
  windows = packing.pack(tiny_gemma.texts(7), ByteTokenizer(), 16, packed=False)
  if side == "left":  # as rollouts of a chat come; here the mask matters
    for row in windows.tokens:
      row[:] = np.roll(row, (row == ByteTokenizer.pad_id).sum())
  real = windows.tokens != ByteTokenizer.pad_id
  assert not real.all()
  made = run(lm, tmp_path / "s", windows, rows=None)
  acts = direct(lm, windows.tokens, "res.1", jnp.asarray(real))
  window, position = made.index(0, made.rows).T
  assert made.rows == (real.sum(axis=1) - 1).sum()
  np.testing.assert_allclose(
    made.read("res.1", 0, made.rows), acts[window, position], atol=1e-5
  )


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 900])
def test_row_budget_is_exact(lm, tmp_path, rows):
  made = run(lm, tmp_path / "s", rows=rows, sites=("res.0",))
  sizes = [
    len(np.load(tmp_path / f"s/res.0/{shard:05d}.npy"))
    for shard in range(made.plan.shards)
  ]
  assert sum(sizes) == made.rows == rows
  assert set(sizes[:-1]) <= {128} and 1 <= sizes[-1] <= 128
  assert len(made.tokens) == -(-rows // 15)


def test_needs_only_the_layers_below_its_sites(lm, store, tmp_path):
  cut = {k: v for k, v in lm.params.items() if k in ("embedder", "layer_0")}
  made = run(
    dataclasses.replace(lm, params=cut), tmp_path / "s", sites=("att.0",)
  )
  np.testing.assert_array_equal(
    made.read("att.0", 0, 900), store.read("att.0", 0, 900)
  )


def test_one_compilation(lm, tmp_path):
  before = forward.taps._cache_size()
  run(lm, tmp_path / "a", sites=("mlp_in.0",), batch=7)
  run(lm, tmp_path / "b", sites=("mlp_in.0",), batch=7, rows=13)
  assert forward.taps._cache_size() == before + 1


def test_bfloat16(lm, store, tmp_path):
  made = run(lm, tmp_path / "s", dtype="bfloat16")
  for site in SITES:
    rows = store.read(site, 0, 900)
    expected = decode(encode(rows, "bfloat16"))
    got = made.read(site, 0, 900)
    np.testing.assert_array_equal(got, expected)
    # The statistics are those of what is stored.
    np.testing.assert_allclose(
      made.statistics(site)[0], got.mean(axis=0, dtype=np.float64), rtol=1e-12
    )
  size = (tmp_path / "s/res.1/00000.npy").stat().st_size
  assert size == 128 * 12 * 2 + 128


def test_finished_store_is_returned_at_once(lm, store):
  stamps = {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}
  broken = dataclasses.replace(lm, params={"x": jnp.zeros(1)})  # can't run
  again = run(broken, store.root)
  assert again.fingerprint == store.fingerprint
  assert stamps == {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}


def test_batch_alignment_makes_lost_shards_anew_to_the_same_bytes(
  lm, store, tmp_path
):
  root = shutil.copytree(store.root, tmp_path / "copy")
  whole = contents(root)
  for name in (
    "res.1/00003.npy",
    "mlp.1/00000.npy",
    "mlp.1/00007.npy",
    "tokens.npy",
    "att.0/moments.npy",
    "att.0/00002.moments.npy",
  ):
    (root / name).unlink()
  short = root / "res.1/00005.npy"
  short.write_bytes(short.read_bytes()[:-8])
  kept = root / "res.1/00004.npy"
  stamp = kept.stat().st_mtime_ns
  run(lm, root).verify()
  assert contents(root) == whole
  assert kept.stat().st_mtime_ns == stamp


def test_shard_made_anew_with_other_bytes_is_refused(lm, store, tmp_path):
  root = shutil.copytree(store.root, tmp_path / "copy")
  (root / "res.1/00003.npy").unlink()
  sidecar = root / "res.1/00003.json"
  sidecar.write_text(sidecar.read_text().replace('"sha256": "', '"sha256": "0'))
  with pytest.raises(CorruptStoreError, match="00003.npy was made anew, but"):
    run(lm, root)
  assert not (root / "res.1/00003.npy").exists()


def harvest_and_die(root, *events):
  """Runs the script; returns its lines."""
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(sys.path),
    "XLA_FLAGS": "",
  }
  ended = subprocess.run(
    [sys.executable, str(SCRIPT), str(root), *map(str, events)],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  return ended.stdout.split("\n")[:-1]


def test_killed_anywhere_finishes_with_the_same_bytes(tmp_path):
  (line,) = harvest_and_die(tmp_path / "whole")
  events = int(line.removeprefix("finished "))
  whole = contents(tmp_path / "whole")
  assert len(whole) > 50 and events > 200
  seed = random.randrange(10**6)
  several = sorted(random.Random(seed).sample(range(1, events), 3))
  for name, moments in (("several", several), ("late", [events - 5])):
    lines = harvest_and_die(tmp_path / name, *moments)
    assert lines[0] == f"killed {moments[0]}", (seed, lines)
    assert lines[-1].startswith("finished"), (seed, lines)
    assert contents(tmp_path / name) == whole, (seed, moments)
  # Finished work was not done again: far fewer files were touched.
  assert int(lines[-1].removeprefix("finished ")) < events / 2


def test_unfinished_store_is_not_opened(lm, tmp_path):
  nan = {**lm.params, "layer_1": {}}
  with pytest.raises(Exception):  # noqa: B017 - whatever flax raises
    run(dataclasses.replace(lm, params=nan), tmp_path / "s")
  with pytest.raises(FileNotFoundError, match="holds an unfinished store"):
    Store.open(tmp_path / "s")


def test_out_of_disk_loses_nothing(lm, store, tmp_path, monkeypatch):
  root, calls = tmp_path / "s", 0

  def full(descriptor, fsync=os.fsync):
    nonlocal calls
    calls += 1
    if calls > 60:
      raise OSError(errno.ENOSPC, "No space left on device")
    fsync(descriptor)

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", full)
    with pytest.raises(artifacts.OutOfDiskError, match="run the same command"):
      run(lm, root)
  done = {
    path: path.stat().st_mtime_ns
    for path in root.rglob("0*.npy")
    if path.with_suffix("").with_suffix(".json").exists()
  }
  assert done and not list(root.rglob("*.incomplete"))
  run(lm, root)
  assert contents(root) == contents(store.root)
  assert done == {path: path.stat().st_mtime_ns for path in done}


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 128 KiB, and a function that makes it larger."""
  path = tmp_path / "disk"
  path.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o"]
  if subprocess.run(
    [*mount, "size=128k", "none", str(path)], capture_output=True
  ).returncode:
    pytest.skip("only root may mount a small disk")
  yield (
    path,
    lambda: subprocess.run(
      [*mount, "remount,size=4m", "none", str(path)], check=True
    ),
  )
  subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_fills_up_loses_nothing(lm, store, small_disk, monkeypatch):
  root, enlarge = small_disk[0] / "s", small_disk[1]
  plenty = shutil.disk_usage(root.parent)._replace(free=10**12)
  with monkeypatch.context() as patch:  # others fill it while we write
    patch.setattr(shutil, "disk_usage", lambda _: plenty)
    with pytest.raises(artifacts.OutOfDiskError, match="run the same command"):
      run(lm, root)
  done = {path: path.stat().st_mtime_ns for path in root.rglob("0*.json")}
  assert done and not list(root.rglob("*.incomplete"))
  assert not (root / LOCK).exists()
  with pytest.raises(FileNotFoundError, match="holds an unfinished store"):
    Store.open(root)
  enlarge()
  run(lm, root).verify()
  assert contents(root) == contents(store.root)
  assert done == {path: path.stat().st_mtime_ns for path in done}


def test_too_small_a_disk_is_refused_beforehand(lm, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=99))
  with pytest.raises(artifacts.OutOfDiskError, match="GiB more, but its disk"):
    run(lm, tmp_path / "s")


def test_non_finite_activations_name_window_and_site(lm, tmp_path):
  windows, unused = tiny_gemma.windows(), ByteTokenizer.eos_id
  windows.tokens[33, 5] = unused
  embedding = np.array(lm.params["embedder"]["embedding"])
  embedding[unused] = np.nan
  params = {**lm.params, "embedder": {"embedding": jnp.asarray(embedding)}}
  bad = dataclasses.replace(lm, params=params)
  with pytest.raises(
    FloatingPointError, match=r"at site res.1 in window 33 .*tokens.npy"
  ):
    run(bad, tmp_path / "s", windows)
  assert np.load(tmp_path / "s/tokens.npy")[33, 5] == unused
  assert not list((tmp_path / "s").rglob("*.incomplete"))
  # Whole shards before it stay: 32 windows of 15 rows are 3 shards of 128.
  assert len(list((tmp_path / "s/res.1").glob("?????.json"))) == 3


def test_second_writer_is_refused(lm, tmp_path):
  with write_lock(tmp_path / "s", LOCK):
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
      run(lm, tmp_path / "s")
  run(lm, tmp_path / "s", sites=("res.0",), rows=20)


def test_folder_of_something_else_is_refused(lm, tmp_path):
  (tmp_path / "thesis.txt").write_text("precious")
  with pytest.raises(ValueError, match="not a store but holds thesis.txt"):
    run(lm, tmp_path)


OTHER_POLICY = dataclasses.replace(POLICY, excluded_ids=(0, 2))


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(lm=1), "its model is tiny-0 .*, not tiny-1"),
    (dict(sites=("res.0",)), r"its sites is res.1 \(12 wide\), .*not res.0"),
    (dict(policy=OTHER_POLICY), r"its policy is .*\[0, 1, 2\].*\[0, 2\]"),
    (dict(dtype="bfloat16"), "its dtype is float32, not bfloat16"),
    (dict(rows=800), "its rows is 900, not 800"),
    (dict(batch=5), "its batch is 4, not 5"),
    (dict(rows_per_shard=64), "its rows_per_shard is 128, not 64"),
    (dict(windows=tiny_gemma.windows(seed=9)), "its tokens is"),
  ],
)
def test_another_store_is_refused(store, lm, changes, message):
  model = tiny_gemma.lm(changes.pop("lm")) if "lm" in changes else lm
  with pytest.raises(StoreMismatchError, match=message):
    run(model, store.root, **changes)


def test_name_follows_from_what_determines_the_bytes(store, lm):
  options = {k: v for k, v in OPTIONS.items() if k != "progress"}

  def name(model=lm, windows=None, **changes):
    windows = tiny_gemma.windows() if windows is None else windows
    return plan(model, windows, SITES, POLICY, **{**options, **changes}).name

  assert store.plan.name == f"tiny-0_res.1_att.0_mlp.1_{store.fingerprint}"
  assert name() == store.plan.name
  assert name(windows=tiny_gemma.windows(rows=900)) == name()
  others = [
    name(rows=899),
    name(dtype="bfloat16"),
    name(windows=tiny_gemma.windows(seed=1)),
    name(dataclasses.replace(lm, weights_hash="x")),
  ]
  assert len({name(), *others}) == 5
  renamed = name(dataclasses.replace(lm, label="Tiny, 4 bit"))
  assert renamed == f"Tiny-4-bit_res.1_att.0_mlp.1_{store.fingerprint}"


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(sites=("res.3",)), r"site res.3: gemma-tiny has layers 0\.\.2"),
    (dict(sites=("rez.1",)), "rez.1"),
    (dict(sites=()), "expected one or more, each once"),
    (dict(sites=("res.1", "res.1")), "each once"),
    (dict(rows=10**6), r"rows 1,000,000: the 185 windows hold only"),
    (dict(rows=0), "rows 0: expected at least 1"),
    (dict(batch=0), "batch 0: expected at least 1"),
    (dict(rows_per_shard=0), "rows_per_shard 0: expected at least 1"),
    (dict(dtype="float16"), "'float16': expected one of float32, bfloat16"),
  ],
)
def test_bad_arguments(lm, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run(lm, tmp_path / "s", **changes)
  assert not (tmp_path / "s").exists()


def test_tokens_of_another_vocabulary(lm, tmp_path):
  windows = tiny_gemma.windows()
  windows.tokens[3, 3] = 260
  with pytest.raises(ValueError, match="token id 260: gemma-tiny has a vocab"):
    run(lm, tmp_path / "s", windows)


def test_progress_bar(lm, tmp_path, capfd):
  meter = Meter()
  run(lm, tmp_path / "s", sites=("res.0",), progress=True, meter=meter)
  shown = capfd.readouterr().err
  assert re.search(r"rows/s, .*iB/s, waiting for language model \d+%", shown)
  total = meter.total()
  assert (total["rows"], total["bytes"]) == (900, 900 * 12 * 4)
  assert set(total["waited"]) == {"language model", "disk"}
  assert "harvest res.0: 100%" in shown and "rows/s" in shown
  run(lm, tmp_path / "t", sites=("res.0",), progress=False)
  assert not capfd.readouterr().err


def unfinished(store, tmp_path):
  """A copy of a finished store, as a kill just before its end leaves it."""
  root = shutil.copytree(store.root, tmp_path / "unfinished")
  (root / "manifest.json").unlink()
  (root / "res.1/moments.npy").unlink()
  return root


def again(lm, root):
  return harvest(lm, tiny_gemma.windows(), SITES, root, POLICY, **OPTIONS)


def all_but_manifest(root):
  found = digests(root)
  del found["manifest.json"]  # holds the config
  return found


def flip(path, at=-5):
  raw = bytearray(path.read_bytes())
  raw[at] ^= 1
  path.write_bytes(raw)


def test_damaged_sums_of_a_shard_never_become_the_stores(lm, store, tmp_path):
  root = unfinished(store, tmp_path)
  flip(root / "res.1/00002.moments.npy")
  with pytest.raises(CorruptStoreError, match=r"00002\.moments\.npy has other"):
    again(lm, root)
  (root / "res.1/00002.moments.npy").unlink()
  assert again(lm, root).statistics("res.1")[1] == store.statistics("res.1")[1]
  assert all_but_manifest(root) == all_but_manifest(store.root)


def test_damaged_sums_of_a_site_are_made_again(lm, store, tmp_path):
  root = unfinished(store, tmp_path)
  flip(root / "mlp.1/moments.npy")
  again(lm, root).verify()
  assert all_but_manifest(root) == all_but_manifest(store.root)


@pytest.mark.parametrize(
  "name", ["tokens.npy", "documents.npy", "keys.npy", "row_starts.npy"]
)
def test_damaged_side_files_are_written_again_on_resume(
  lm, store, tmp_path, name
):
  root = unfinished(store, tmp_path)
  flip(root / name)
  again(lm, root).verify()
  assert all_but_manifest(root) == all_but_manifest(store.root)


def test_a_sidecar_that_says_nothing(lm, store, tmp_path):
  root = unfinished(store, tmp_path)
  (root / "res.1/00003.json").write_text('{"rows"')
  with pytest.raises(CorruptStoreError, match=r"00003\.json .* Delete"):
    again(lm, root)
  (root / "res.1/00003.json").unlink()
  again(lm, root).verify()
  assert all_but_manifest(root) == all_but_manifest(store.root)


def test_a_manifest_with_another_hash_is_written_again(lm, store, tmp_path):
  root = shutil.copytree(store.root, tmp_path / "copy")
  manifest = json.loads((root / "manifest.json").read_text())
  whole = json.dumps(manifest)
  manifest["sites"]["res.1"]["shards"][1]["sha256"] = "0" * 64
  (root / "manifest.json").write_text(json.dumps(manifest))
  opened = Store.open(root)
  damage = store_checking.find_damage(opened)
  assert {name for name, _ in damage} == {"res.1/00001.npy", "res.1/00001.json"}
  store_checking.set_aside(opened, damage)
  again(lm, root).verify()
  found = json.loads((root / "manifest.json").read_text())
  assert found["sites"] == json.loads(whole)["sites"]


def test_other_numbers_of_parts_at_once_are_refused(lm, store, tmp_path):
  root = unfinished(store, tmp_path)
  (root / "res.1/00002.npy").unlink()
  with write_lock(root, "writer.0-of-2.lock"):
    for part in ((1, 3), (0, 1)):
      with pytest.raises(LockedError, match="is being written by process"):
        harvest(
          lm,
          tiny_gemma.windows(),
          SITES,
          root,
          POLICY,
          part=part,
          **OPTIONS,
        )
