"""Names of a release's folders, and what may be read and written in one."""

import json
import re

import pytest

from gemmascope_jax.releases import folder


def _release(root, files=("a/card.json",), weights="w"):
  for name in files:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sae": {"weights_hash": weights}}))
  about = {"saes": [{"folder": "a"}], "model": {}, "weights_format": "x"}
  return folder.finish(root, about)


def test_one_kind_is_named_as_released_and_several_stand_apart():
  l0s = [("res.5", None, 16384, 76.6), ("res.5", None, 2**20, 76.6)]
  assert folder.places(l0s) == [
    "layer_5/width_16k/average_l0_77",
    "layer_5/width_1m/average_l0_77",
  ]
  kinds = [*l0s, ("mlp_in.3", "mlp.3", 4096, 10), ("att.0", None, 4096, 1)]
  assert folder.places(kinds)[1:] == [
    "res/layer_5/width_1m/average_l0_77",
    "transcoders/layer_3/width_4k/average_l0_10",
    "att/layer_0/width_4k/average_l0_1",
  ]


def test_of_equal_names_the_sparsest_has_the_plain_one():
  named = [("res.5", None, 4096, l0) for l0 in (77.2, 76.8, 76.8, 90, 77.0)]
  name = "layer_5/width_4k/average_l0_77"
  assert folder.places(named) == [
    f"res-4/{name}",
    f"res/{name}",
    f"res-2/{name}",
    "res/layer_5/width_4k/average_l0_90",
    f"res-3/{name}",
  ]


@pytest.mark.parametrize(
  "name",
  ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "", "a//b", "C:x", None]
  + ["a\nb", "."],
)
def test_paths_outside_are_refused(tmp_path, name):
  root = tmp_path / "r"
  _release(root)
  index = json.loads((root / folder.INDEX).read_text())
  if name is None:
    index["saes"][0]["folder"] = None
  else:
    index["files"][name] = {"sha256": "0" * 64, "bytes": 1}
  (root / folder.INDEX).write_text(json.dumps(index))
  with pytest.raises(folder.ReleaseError, match="outside the folder"):
    folder.read_index(root)


def test_a_link_that_leads_out_is_refused_but_for_the_hubs_cache(tmp_path):
  root = tmp_path / "r"
  _release(root)
  target = tmp_path / "secret"
  (root / "a/card.json").rename(target)
  (root / "a/card.json").symlink_to(target)
  with pytest.raises(folder.ReleaseError, match="outside the folder"):
    folder.read_index(root)
  cache = tmp_path / "models--user--name/snapshots/0123"
  _release(cache)
  blob = cache.parent.parent / "blobs/abc"
  blob.parent.mkdir()
  (cache / "a/card.json").rename(blob)
  (cache / "a/card.json").symlink_to(blob)
  assert not folder.damage(cache, folder.read_index(cache))


def test_damage_is_told_apart(tmp_path):
  names = ("a/card.json", "b/card.json", "c/card.json", "d/card.json")
  for name in names:
    _release(tmp_path, [name], weights=name)
  index = folder.read_index(tmp_path)
  assert not folder.damage(tmp_path, index)
  one, other = (tmp_path / names[0]), (tmp_path / names[1])
  bytes_ = one.read_bytes(), other.read_bytes()
  one.write_bytes(bytes_[1]), other.write_bytes(bytes_[0])
  (tmp_path / names[2]).unlink()
  with open(tmp_path / names[3], "ab") as file:
    file.write(b" ")
  (tmp_path / "extra.bin").write_text("?")
  (tmp_path / ".gitattributes").write_text("hidden files are the Hub's")
  found = folder.damage(tmp_path, index)
  assert "what b/card.json should hold: swapped" in found[names[0]]
  assert "what a/card.json should hold: swapped" in found[names[1]]
  assert found[names[2]] == "is missing"
  assert "it was changed" in found[names[3]]
  assert "not in the index" in found["extra.bin"]
  assert len(found) == 5


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lambda root: (root / "index.json").unlink(), "has no index.json"),
    (lambda root: (root / "index.json").write_text("{"), "not valid JSON"),
    (lambda root: (root / "index.json").write_text("[]"), "is not the index"),
    (
      lambda root: (root / "index.json").write_text(
        json.dumps({"what": folder.WHAT, "format": 99})
      ),
      "has format 99",
    ),
    (
      lambda root: (root / "index.json").write_text(
        json.dumps({"what": folder.WHAT, "format": 1, "files": []})
      ),
      "lacks files, saes, model",
    ),
    (lambda root: folder.begin(root, ["a"]), "cut short"),
  ],
)
def test_what_is_no_release_is_said(tmp_path, change, says):
  _release(tmp_path)
  change(tmp_path)
  with pytest.raises(folder.ReleaseError, match=says):
    folder.read_index(tmp_path)
  with pytest.raises(FileNotFoundError, match="no such folder"):
    folder.read_index(tmp_path / "none")


def test_nothing_else_is_written_over(tmp_path):
  folder.check_target(tmp_path / "new", ["w"])
  mine = tmp_path / "mine"
  mine.mkdir()
  folder.check_target(mine, ["w"])
  (mine / "thesis.tex").write_text("years of work")
  with pytest.raises(
    ValueError, match=re.escape("else than a release: thesis")
  ):
    folder.check_target(mine)
  with pytest.raises(ValueError, match="is a file"):
    folder.check_target(mine / "thesis.tex")
  root = tmp_path / "r"
  _release(root)
  folder.check_target(root, ["w", "more"])
  with pytest.raises(ValueError, match="not among these: a; choose another"):
    folder.check_target(root, ["another"])
  (root / "a/notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="else than a release: a/notes.txt"):
    folder.check_target(root, ["w"])


def test_what_has_another_name_now_is_removed_and_what_was_cut_is_known(
  tmp_path,
):
  _release(tmp_path, ["x/y/card.json"])
  (tmp_path / "x/y/params.npz.1-ab.incomplete").write_text("half")
  folder.begin(tmp_path, ["x/z"])
  assert not (tmp_path / "x/y").exists() and (tmp_path / "x").exists() is False
  (tmp_path / "x/z").mkdir(parents=True)
  (tmp_path / "x/z/params.npz").write_text("half a release")
  folder.check_target(tmp_path, ["w"])  # may go on
  folder.begin(tmp_path, ["x/q"], {"licence": "mit"})
  with pytest.raises(ValueError, match="licence 'mit', not '';"):
    folder.check_target(tmp_path, ["w"], {"licence": None})
  assert not (tmp_path / "x/z").exists()
