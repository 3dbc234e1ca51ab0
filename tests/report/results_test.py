import json

import pytest

from gemmascope_jax.report import results


def test_reads_every_field(fidelity):
  result = results.parse_fidelity(fidelity)
  assert [row.name for row in result.saes] == [
    "sparsity 0.0001",
    "sparsity 0.0002",
    "sparsity 0.0004",
    "sparsity 0.0008",
  ]
  assert len(result.rows) == len(result.saes) + len(result.baselines) == 11
  first = result.saes[0]
  assert first.l0 == results.Value(148.3, 0.008 * 148.3, 64)
  assert first.width == 4096 and first.family == "jumprelu"
  assert first.sparsity_coefficient == 1e-4
  mean, zero, pca, untrained = result.baselines[:4]
  assert mean.l0 is None and zero.l0 is None
  assert pca.components == 50
  assert untrained.of == "sparsity 0.0001" and untrained.l0.mean == 148.3
  assert result.spectrum[0] == (1, 0.71)
  assert result.provenance["config"] == fidelity["config"]
  assert "rows" not in result.provenance


def test_spectrum_is_optional(fidelity):
  del fidelity["spectrum"]
  assert results.parse_fidelity(fidelity).spectrum is None


def test_missing_file_says_what_makes_it(tmp_path):
  with pytest.raises(FileNotFoundError, match="experiments.evaluate"):
    results.read_fidelity(tmp_path / "fidelity.json")


def test_file_that_is_not_json_is_named(tmp_path):
  path = tmp_path / "fidelity.json"
  path.write_text('{"study": ')
  with pytest.raises(results.ResultError, match="fidelity.json is not valid"):
    results.read_fidelity(path)


@pytest.mark.parametrize("content", [[], {"study": "latents", "format": 1}])
def test_another_study(tmp_path, content):
  path = tmp_path / "fidelity.json"
  path.write_text(json.dumps(content))
  with pytest.raises(results.ResultError, match="not a fidelity result"):
    results.read_fidelity(path)


def test_another_format_names_the_code_that_wrote_it(fidelity):
  fidelity["format"] = 2
  with pytest.raises(results.ResultError, match=r"format 2.*0\.1\.0\+1a51"):
    results.parse_fidelity(fidelity)


def test_no_rows(fidelity):
  fidelity["rows"] = []
  with pytest.raises(results.ResultError, match="has no rows"):
    results.parse_fidelity(fidelity)


def test_no_sae(fidelity):
  fidelity["rows"] = fidelity["rows"][4:6]
  with pytest.raises(results.ResultError, match="2 rows but no SAE"):
    results.parse_fidelity(fidelity)


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("fvu", None, r"rows\[0\] \(sparsity 0.0001\): 'fvu' is missing"),
    ("l0", None, "'l0' is missing"),
    ("width", 4096.5, "'width' is 4096.5, expected a int"),
    ("width", True, "'width' is True"),
    ("kind", "SAE", "expected 'sae' or 'baseline'"),
    ("fvu", {"mean": float("nan"), "stderr": 0.1, "n": 3}, "'mean' is nan"),
    ("fvu", {"mean": 0.1, "stderr": -0.1, "n": 3}, "'stderr' is -0.1"),
    ("fvu", {"mean": "0.1", "stderr": 0.1, "n": 3}, "'mean' is '0.1'"),
    ("fvu", {"mean": 0.1, "stderr": 0.1}, "fvu: 'n' is missing"),
  ],
)
def test_a_wrong_field_is_named(fidelity, key, value, message):
  fidelity["rows"][0][key] = value
  with pytest.raises(results.ResultError, match=message):
    results.parse_fidelity(fidelity)


@pytest.mark.parametrize("key", ["model", "site", "tokens", "clean_loss"])
def test_a_missing_field_is_named(fidelity, key):
  del fidelity[key]
  with pytest.raises(results.ResultError, match=f"'{key}' is missing"):
    results.parse_fidelity(fidelity)


def test_a_row_that_is_no_object(fidelity):
  fidelity["rows"][1] = "mean ablation"
  with pytest.raises(results.ResultError, match=r"rows\[1\] is 'mean"):
    results.parse_fidelity(fidelity)


def test_spectrum_of_unequal_lengths(fidelity):
  fidelity["spectrum"]["fvu"].pop()
  with pytest.raises(results.ResultError, match="9 components but 8 FVUs"):
    results.parse_fidelity(fidelity)
