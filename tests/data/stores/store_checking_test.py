import json
import shutil

import pytest
import tiny_gemma
from tiny_gemma import OPTIONS, POLICY, SITES

from experiments import store as binary
from gemmascope_jax.data.stores.harvest import harvest
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_checking import (
  Damage,
  find_damage,
  set_aside,
)
from tests.digests import digests


@pytest.fixture
def copy(store, tmp_path):
  return shutil.copytree(store.root, tmp_path / "copy")


def flip(path):
  raw = bytearray(path.read_bytes())
  raw[-5] ^= 1
  path.write_bytes(raw)


BAD = (
  "att.0/00001.moments.npy",
  "keys.npy",
  "mlp.1/00006.json",
  "mlp.1/moments.npy",
  "res.1/00003.checks.npy",
  "res.1/00005.npy",
)


def contents(root):
  return {k: v for k, v in digests(root).items() if not k.endswith(".bad")}


def test_all_damage_is_found_set_aside_and_made_again(copy, store, lm):
  for name in BAD:
    flip(copy / name)
  (copy / "tokens.npy").unlink()
  opened = Store.open(copy)
  damage = find_damage(opened)
  assert [name for name, _ in damage] == sorted([*BAD, "tokens.npy"])
  assert Damage("tokens.npy", "is missing") in damage
  assert set_aside(opened, damage) == [f"{name}.bad" for name in sorted(BAD)]
  kept = copy / "res.1/00004.npy"
  stamp = kept.stat().st_mtime_ns
  harvest(lm, tiny_gemma.windows(), SITES, copy, POLICY, **OPTIONS).verify()
  assert contents(copy) == contents(store.root)
  assert kept.stat().st_mtime_ns == stamp
  assert len(list(copy.rglob("*.bad"))) == len(BAD)


def test_a_damaged_mean_is_not_given(copy):
  flip(copy / "res.1/moments.npy")
  with pytest.raises(ValueError, match=r"res\.1/moments\.npy has other bytes"):
    Store.open(copy).statistics("res.1")


def run(capsys, *arguments, **values):
  """Runs the command; returns (exit status, output, errors)."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # parsing wants every binary's flags
  before = {name: flags.FLAGS[name].value for name in values}
  for name, value in values.items():
    flags.FLAGS[name].value = value
  status = 0
  try:
    binary.main(["store", *map(str, arguments)])
  except SystemExit as ended:
    status = ended.code
  finally:
    for name, value in before.items():
      flags.FLAGS[name].value = value
  return status, *capsys.readouterr()


def test_inspect(store, capsys):
  status, text, _ = run(capsys, "inspect", store.root)
  assert status == 0 and text.rstrip() == store.describe()
  _, text, _ = run(capsys, "inspect", f"file://{store.root}", json=True)
  said = json.loads(text)
  assert said["rows"] == 900 and said["format"] == 2
  assert said["sites"]["res.1"]["width"] == 12
  assert said["bytes"] == sum(
    path.stat().st_size for path in store.root.rglob("0000?.npy")
  )
  scale = store.statistics("res.1")[1] ** 0.5
  assert said["sites"]["res.1"]["scale"] == scale


def test_verify(copy, capsys):
  status, text, bar = run(capsys, "verify", copy)
  assert status == 0 and "every file is what the manifest says" in text
  assert "verify: 100%" in bar and "B/s" in bar
  flip(copy / "res.1/00005.npy")
  status, text, _ = run(capsys, "verify", copy)
  assert status == 1 and "res.1/00005.npy has other bytes" in text
  assert "--set_aside" in text and (copy / "res.1/00005.npy").exists()
  status, text, _ = run(capsys, "verify", copy, set_aside=True)
  assert status == 1 and f"set aside: {copy}/res.1/00005.npy.bad" in text
  assert not (copy / "res.1/00005.npy").exists()


def test_errors_are_one_line(tmp_path, capsys):
  status, *_ = run(capsys, "inspect", tmp_path)
  assert (
    status == f"error: {tmp_path} holds no store (manifest.json is missing)"
  )
