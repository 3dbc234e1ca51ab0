"""Every notebook runs from top to bottom, on the packaged model, with less data.

A cell tagged "parameters" holds what a reader may change; the tests put smaller
numbers after it. The figures that are committed are those of the full numbers.
"""

import pathlib
import shutil
import tempfile

import filelock
import pytest

from configs import quickstart
from gemmascope_jax import experiment
from gemmascope_jax.gemma.weights import demo
from gemmascope_jax.gemma.weights.errors import WeightsNotFoundError

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = pathlib.Path(__file__).parents[1]
_SMALL = {
  "1_load_and_look": {},
  "2_train_and_sweep": {"ROWS": 4_096, "WIDTH": 256, "SEQUENCES": 2},
  "3_compare_two_saes": {},
  "4_steer": {
    "PROMPTS": ("I think that",),
    "STRENGTHS": (2.0,),
    "ANSWERS": 1,
    "NEW_TOKENS": 6,
    "SEQUENCES": 8,
    "SCORED": 4,
  },
  "5_across_layers": {"LAYERS": (4, 5), "ROWS": 4_096, "WIDTH": 256},
}


def _read(name):
  return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def _kinds(cell):
  return {
    kind for out in cell.get("outputs", ()) for kind in out.get("data", ())
  }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with notebooks/, data/ and a small runs/quickstart."""
  try:
    demo.find_parts()
  except WeightsNotFoundError as error:
    pytest.skip(str(error))
  # Workers of one session share it: it costs half a minute.
  root = tmp_path_factory.getbasetemp().parent / "notebooks_project"
  root.mkdir(exist_ok=True)
  with filelock.FileLock(root / "lock"):
    if not (root / "done").exists():
      (root / "notebooks").mkdir(exist_ok=True)
      (root / "data").symlink_to(ROOT / "data")
      config = quickstart.get_config()
      config.workdir = str(root / "runs/quickstart")
      config.data.packages = str(ROOT / "data/packages")
      config.progress = False
      config.data.window = 128
      config.harvest.rows = 12_288
      config.harvest.rows_per_shard = 12_288
      config.train.tokens = 24_576
      config.train.sparsity_coefficients = (1e-5, 5e-5, 2e-4)
      config.recipe.width = 512
      config.recipe.threshold_init_l0 = 20.0
      config.evaluate.sequences = 2
      config.evaluate.stride = 1
      config.evaluate.latents = 2
      experiment.harvest(config)
      experiment.train(config)
      experiment.evaluate(config)
      (root / "done").touch()
  return root


def test_there_is_a_small_version_of_each():
  there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
  assert there == set(_SMALL)


@pytest.mark.parametrize("name", _SMALL)
def test_a_reader_on_the_web_sees_its_figures(name):
  notebook = _read(name)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in code] == list(
    range(1, len(code) + 1)
  )
  assert not any(
    out.output_type == "error" for cell in code for out in cell.outputs
  )
  assert any("image/png" in _kinds(cell) for cell in code)
  written = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
  assert "Warning" not in written
  for place in (ROOT, pathlib.Path.home(), tempfile.gettempdir()):
    assert f"{place}/" not in written
  opening = notebook.cells[0].source
  assert "You will see" in opening and "**Takes**" in opening


@pytest.mark.slow
@pytest.mark.parametrize("name", _SMALL)
def test_it_runs_and_shows_what_it_showed(name, place, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("XLA_FLAGS", "")  # as a reader has it: one device
  monkeypatch.delenv("PJRT_NPROC")
  notebook = _read(name)
  (at,) = [
    i
    for i, cell in enumerate(notebook.cells)
    if "parameters" in cell.metadata.get("tags", ())
  ]
  before = [_kinds(cell) for cell in notebook.cells]
  given = "\n".join(f"{key} = {value!r}" for key, value in _SMALL[name].items())
  notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(given))
  shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", place / "notebooks")
  nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(place / "notebooks")}},
  ).execute()
  del notebook.cells[at + 1]
  assert [_kinds(cell) for cell in notebook.cells] == before
