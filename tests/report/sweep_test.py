"""Many runs in one table and one figure."""

import csv
import io
import json

import pytest

from gemmascope_jax.report import plotting, results, sweep
from tests.report.conftest import make_fidelity


def _results(folder, *sites):
  found = {}
  for number, site in enumerate(sites):
    result = make_fidelity() | {"site": site}
    for row in result["rows"]:
      if row["kind"] == "sae":
        row["width"] = 1024 * (1 + number % 2)
    path = folder / f"{number}.json"
    path.write_text(json.dumps(result))
    found[f"run{number}"] = path
  return found


def test_every_number_is_in_the_table(tmp_path):
  found = _results(tmp_path, "res.12", "res.5", "mlp.5")
  written = sweep.build(found, tmp_path / "out", ["run3"])
  assert [path.name for path in written] == [
    "saes.csv",
    "saes.md",
    "delta_loss.png",
    "fvu.png",
  ]
  rows = list(csv.DictReader(io.StringIO(written[0].read_text())))
  assert [row["site"] for row in rows[::4]] == ["mlp.5", "res.5", "res.12"]
  assert [row["run"] for row in rows[::4]] == ["run2", "run1", "run0"]
  one = results.read_fidelity(found["run1"]).saes
  for row, sae in zip(
    rows[4:8], sorted(one, key=lambda x: x.l0.mean), strict=True
  ):
    assert float(row["delta_loss"]) == sae.delta_loss.mean
    assert float(row["fvu_stderr"]) == sae.fvu.stderr
    assert float(row["sparsity_coefficient"]) == sae.sparsity_coefficient
  page = written[1].read_text()
  assert page.count("| res.5 | JumpReLU | 2,048 |") == 4
  assert "12 SAEs of 3 runs" in page and "1 run without results so far" in page


def test_panels_are_sites_and_colours_mean_the_same_in_all(tmp_path):
  found = _results(tmp_path, "res.5", "res.12", "mlp.5")
  read = {name: results.read_fidelity(path) for name, path in found.items()}
  with plotting.style():
    figure = sweep._figure(["mlp.5", "res.5", "res.12"], "fvu", read, [])
    plotting.png(figure)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    colours = {}
    for panel in panels:
      handles, labels = panel.get_legend_handles_labels()
      for handle, label in zip(handles, labels, strict=True):
        colours.setdefault(label, set()).add(handle[0].get_color())
  assert [panel.get_title(loc="left") for panel in panels] == [
    "mlp.5",
    "res.5",
    "res.12",
  ]
  assert len(colours) == 2 and all(len(each) == 1 for each in colours.values())


def test_many_sites_are_drawn_by_kind(tmp_path):
  sites = [f"{kind}.{layer}" for kind in ("res", "mlp") for layer in range(7)]
  found = {
    name: results.read_fidelity(path)
    for name, path in _results(tmp_path, *sites).items()
  }
  figures = sweep._figures(found)
  assert list(figures) == ["_mlp", "_res"]
  assert figures["_res"] == [f"res.{layer}" for layer in range(7)]


def test_nothing_yet_is_nothing(tmp_path):
  assert sweep.build({}, tmp_path) == []
  assert not list(tmp_path.iterdir())
  bad = tmp_path / "bad.json"
  bad.write_text("{}")
  with pytest.raises(results.ResultError, match="bad.json"):
    sweep.build({"run": bad}, tmp_path)
