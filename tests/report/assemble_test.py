import json
import os
import re
import subprocess
import sys

import pytest

from gemmascope_jax import report


@pytest.fixture(scope="module")
def built(tmp_path_factory, make_folders):
  """(folders, paths, bytes) of one whole report."""
  folders = make_folders(tmp_path_factory.mktemp("report"))
  paths = report.build(*folders)
  return folders, paths, {n: p.read_bytes() for n, p in paths.items()}


def test_builds_everything(built):
  (_, _, out), paths, content = built
  assert set(paths) == {
    "sparsity_fidelity.png",
    "training_curves.png",
    "spectrum.png",
    "index.html",
    "table.txt",
    "table.md",
  }
  assert {path.name for path in out.iterdir()} == set(paths)
  assert all(path == out / name for name, path in paths.items())
  for name in paths:
    if name.endswith(".png"):
      assert content[name][:8] == b"\x89PNG\r\n\x1a\n"
  assert "± " in content["table.txt"].decode()
  page = content["index.html"].decode()
  assert page.count("<svg") == 3 + 36
  assert "http://" not in page and "https://" not in page
  assert " src=" not in page
  ids = re.findall(r'\sid="([^"]+)"', page)
  assert len(ids) == len(set(ids))
  assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_same_inputs_same_bytes_in_another_process(built, tmp_path):
  (results, train, _), _, content = built
  code = (
    "import sys; from gemmascope_jax import report; report.build(*sys.argv[1:])"
  )
  subprocess.run(
    [sys.executable, "-c", code, results, train, tmp_path],
    check=True,
    env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
  )
  for name, first in content.items():
    assert (tmp_path / name).read_bytes() == first, name


def test_only_a_fidelity_result(folders, fidelity):
  results, _, out = folders
  (results / "latents.json").unlink()
  del fidelity["spectrum"]
  (results / "fidelity.json").write_text(json.dumps(fidelity))
  out.mkdir()
  for name in ("training_curves.png", "spectrum.png", "notes.txt"):
    (out / name).write_text("from an earlier report")
  paths = report.build(results, None, out)
  assert set(paths) == {
    "sparsity_fidelity.png",
    "index.html",
    "table.txt",
    "table.md",
  }
  # Figures that would be stale are gone; other files are not ours to touch.
  assert {path.name for path in out.iterdir()} == {*paths, "notes.txt"}


def test_no_results(folders, tmp_path):
  with pytest.raises(FileNotFoundError, match="fidelity.json"):
    report.build(tmp_path / "nowhere", None, folders[2])
  assert not folders[2].exists()


def test_a_train_folder_without_metrics(folders, tmp_path):
  with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
    report.build(folders[0], tmp_path, folders[2])


def test_training_alone_while_it_goes_on(folders):
  _, train, out = folders
  run = {"site": "res.5", "model": "gemma-3-270m"}
  (train / "run.json").write_text(json.dumps(run))
  with open(train / "metrics.jsonl", "a") as file:
    file.write('{"step": 9')
  paths = report.build_training(train, out)
  assert list(paths) == ["training_curves.png"]
  assert paths["training_curves.png"].read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_tables_are_written(folders, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(ImportError, match="plots"):
    report.build(*folders)
  assert (folders[2] / "table.txt").exists()


def test_importing_the_report_imports_neither_matplotlib_nor_jax():
  code = (
    "import sys; import gemmascope_jax.report;"
    " bad = {'jax', 'flax', 'matplotlib', 'torch', 'transformers'};"
    " own = {'gemmascope_jax.gemma', 'gemmascope_jax.sae'};"
    " found = (bad | own) & set(sys.modules); assert not found, found"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
