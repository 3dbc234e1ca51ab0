"""Studies by one command, on a tiny model: results, page, resume, refusals."""

import csv
import json
import pathlib
import re

import numpy as np
import pytest

from gemmascope_jax import artifacts, experiment
from gemmascope_jax import sae as saes
from gemmascope_jax.report import ResultError
from gemmascope_jax.report import studies as study_report
from tests import experiment_runs_test, experiment_test
from tests.digests import digests

model, text = experiment_test.model, experiment_test.text
pile = experiment_runs_test.pile


_STORED = ("frequency", "interpretability", "width")


@pytest.fixture(scope="module")
def trained(model, text, pile, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  config = experiment_test._config(model, text, workdir)
  # With the first it makes a ladder of widths.
  config.train.members = ({"width": 48, "sparsity_coefficient": 1e-3},)
  config.studies.subset_source = f"file:{pile}"
  config.studies.subset_sequences = 6
  experiment.harvest(config)
  experiment.train(config)
  return config


@pytest.fixture(scope="module")
def found(trained):
  return experiment.study(trained, ["all"])


def _folder(config, name):
  return pathlib.Path(config.workdir) / name


def test_every_study_leaves_a_result_and_a_place_on_the_page(trained, found):
  done = [name for name in experiment.STUDIES if name in found["results"]]
  assert list(found["results"]) == done
  assert set(experiment.STUDIES) - set(done) == set(found["left_out"])
  assert set(found["left_out"]) == {"instruct", "transcoders"}
  text = found["page"].read_text()
  for name, result in found["results"].items():
    on_disk = json.loads(
      (_folder(trained, "results/studies") / f"{name}.json").read_text()
    )
    assert on_disk["study"] == result["study"] == name
    split = "train" if name in _STORED else "held_out"
    assert name == "subsets" or on_disk["tokens"]["split"] == split
    assert name in ("subsets", *_STORED) or (
      on_disk["tokens"]["sequences"] == 12
    )
    assert on_disk["code"] and on_disk["token_policy"] and on_disk["hashes"]
    assert on_disk["findings"]
    assert f'<section id="{name}">' in text
    assert list(_folder(trained, "report/studies").glob(f"{name}*.png"))


def test_the_metrics_are_those_of_the_runs_own_evaluation(trained, found):
  rows = {r["name"]: r for r in experiment.evaluate(trained)["rows"]}
  fidelity = found["results"]["fidelity"]
  for sae in fidelity["saes"]:
    for metric in ("l0", "fvu", "delta_loss"):
      ours, theirs = sae[metric], rows[sae["name"]][metric]
      assert ours["mean"] == pytest.approx(theirs["mean"], rel=1e-4, abs=1e-6)
      assert ours["n"] == theirs["n"] == 12
  zero = rows["zero ablation"]["delta_loss"]["mean"]
  (site,) = fidelity["sites"]
  assert site["zero"]["delta_loss"]["mean"] == pytest.approx(zero, rel=1e-4)
  assert site["mean"]["fvu"]["mean"] == pytest.approx(1, abs=1e-6)


def test_the_same_again_measures_nothing_and_gives_the_same_bytes(
  trained, found
):
  before = digests(_folder(trained, "."), "results", "report/studies")
  parts = {
    path: path.stat().st_mtime_ns
    for path in _folder(trained, "results/parts").iterdir()
  }
  experiment.study(trained, ["all"])
  assert digests(_folder(trained, "."), "results", "report/studies") == before
  assert all(p.stat().st_mtime_ns == t for p, t in parts.items())


def test_any_sae_can_be_studied_by_its_path(trained, found, tmp_path):
  folders = sorted(_folder(trained, "train/saes").iterdir())
  config = trained.copy_and_resolve_references()
  config.workdir = str(tmp_path)
  given = [f"mine:res.1={folders[0]}", str(folders[1] / "params.npz")]
  given.append(str(folders[2]))
  result = experiment.study(config, ["fidelity"], given)["results"]["fidelity"]
  names = [sae["name"] for sae in result["saes"]]
  assert names[0] == "mine" and names[1].endswith(folders[1].name)
  known = {
    saes.load(folder).config.details()["name"]: folder for folder in folders
  }
  own = {sae["name"]: sae for sae in found["results"]["fidelity"]["saes"]}
  for name, folder in known.items():
    (row,) = [
      r
      for r in result["saes"]
      if all(
        r[key] == own[name][key] for key in ("width", "sparsity_coefficient")
      )
    ]
    assert row["fvu"] == own[name]["fvu"], folder


@pytest.mark.parametrize(
  ("names", "given", "says"),
  [
    (["nonsense"], [], "study 'nonsense': expected some of fidelity"),
    ([], [], "expected some of fidelity"),
    (["fidelity"], ["mlp.0={sae}"], "was trained at res.1, not at mlp.0"),
    (["fidelity"], ["a:res.1={sae}", "a:res.1={sae}"], "two SAEs are called"),
  ],
)
def test_what_makes_no_sense_is_refused(trained, names, given, says):
  folder = sorted(_folder(trained, "train/saes").iterdir())[0]
  with pytest.raises(ValueError, match=says):
    experiment.study(trained, names, [g.format(sae=folder) for g in given])


def test_all_leaves_out_what_cannot_be(trained, tmp_path):
  folder = sorted(_folder(trained, "train/saes").iterdir())[0]
  config = trained.copy_and_resolve_references()
  config.workdir = str(tmp_path)
  config.data.source = str(next(_folder(trained, "store").iterdir()))
  found = experiment.study(config, ["all"], [str(folder)])
  assert "width" in found["left_out"] and "fidelity" in found["results"]
  with pytest.raises(ValueError, match="have one width"):
    experiment.study(config, ["width"], [str(folder)])


def test_a_study_of_a_store_says_what_it_lacks(trained, tmp_path):
  folder = sorted(_folder(trained, "train/saes").iterdir())[0]
  config = trained.copy_and_resolve_references()
  config.workdir = str(tmp_path)
  with pytest.raises(ValueError, match="this workdir has none: harvest first"):
    experiment.study(config, ["frequency"], [str(folder)])
  config.data.source = str(next(_folder(trained, "store").iterdir()))
  found = experiment.study(config, ["frequency"], [str(folder)])
  assert found["results"]["frequency"]["saes"][0]["width"] == 48


def test_people_rate_a_blinded_sheet(trained, tmp_path):
  config = trained.copy_and_resolve_references()
  config.workdir = str(tmp_path)
  config.data.source = str(next(_folder(trained, "store").iterdir()))
  config.studies.rated_latents = 3
  sae = str(sorted(_folder(trained, "train/saes").iterdir())[0])
  experiment.study(config, ["interpretability"], [f"hidden:res.1={sae}"])
  folder = tmp_path / "ratings"
  assert (folder / "sheet.html").exists()
  assert "hidden" not in (folder / "sheet.csv").read_text()
  with open(folder / "sheet.csv", newline="", encoding="utf-8-sig") as file:
    rows = list(csv.DictReader(file))
  for row, label in zip(rows, ("YES", "YES", "NO"), strict=True):
    row |= {"rater": "alice", "label": label}
  with open(tmp_path / "alice.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  config.studies.ratings = (str(tmp_path / "alice.csv"),)
  result = experiment.study(
    config, ["interpretability"], [f"hidden:res.1={sae}"]
  )["results"]["interpretability"]
  (family,) = result["ratings"]["families"]
  assert family["yes"]["mean"] == pytest.approx(2 / 3)
  config.studies.rated_latents = 0
  (folder / "key.json").unlink()
  with pytest.raises(FileNotFoundError, match="make the sheet first"):
    experiment.study(config, ["interpretability"], [f"hidden:res.1={sae}"])


def test_no_sae_at_a_path_is_said(trained, tmp_path):
  with pytest.raises(FileNotFoundError, match="no SAE at"):
    experiment.study(trained, ["fidelity"], [f"res.1={tmp_path}"])


def test_documents_trained_on_are_not_studied(trained):
  config = trained.copy_and_resolve_references()
  config.data.held_out = 1.0
  with pytest.raises(ValueError, match="held-out documents are among those"):
    experiment.study(config, ["fidelity"])


def test_the_page_escapes_and_refuses_what_is_no_result(
  trained, found, tmp_path
):
  result = json.loads(
    (_folder(trained, "results/studies") / "fidelity.json").read_text()
  )
  result["saes"][0]["name"] = "<script>alert(1)</script>"
  artifacts.write_json(tmp_path / "fidelity.json", result)
  page = study_report.build(tmp_path, tmp_path / "out", experiment.STUDIES)
  assert "<script>alert" not in page.read_text()
  artifacts.write_json(tmp_path / "position.json", result)
  with pytest.raises(ResultError, match="expected a result of the study"):
    study_report.build(tmp_path, tmp_path / "out", experiment.STUDIES)
  with pytest.raises(FileNotFoundError, match="no study's result"):
    study_report.build(tmp_path / "out", tmp_path, experiment.STUDIES)


def test_numbers_of_the_page_are_numbers(found):
  assert not re.search(r"\bnan\b", found["page"].read_text(), re.IGNORECASE)
  for result in found["results"].values():
    json.dumps(result, default=float, allow_nan=False)
  assert np.isfinite(found["results"]["fidelity"]["saes"][0]["kl"]["mean"])
