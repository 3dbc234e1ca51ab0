import json
import math

import pytest

from gemmascope_jax.report import training_metrics
from gemmascope_jax.report.results import ResultError


@pytest.fixture
def write(tmp_path):
  path = tmp_path / "metrics.jsonl"

  def write_lines(lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path

  return write_lines


def test_one_curve_a_member(write, metrics):
  members = training_metrics.read_metrics(write(metrics))
  assert [member.name for member in members] == [
    "sparsity 0.0001",
    "sparsity 0.0002",
    "sparsity 0.0004",
    "sparsity 0.0008",
  ]
  member = members[2]
  mine = [line for line in metrics if line["member"] == 2]
  assert member.steps == tuple(line["step"] for line in mine)
  assert member.rows == tuple(line["step"] * 1024 for line in mine)
  assert member.curves["fvu"] == tuple(line["fvu"] for line in mine)
  assert set(member.curves) == {
    "fvu",
    "l0",
    "dead_fraction",
    "threshold_mean",
    "kernel_share",
  }


def test_optional_curves_and_rows(write, metrics):
  for line in metrics:
    del line["kernel_share"], line["rows"]
  member = training_metrics.read_metrics(write(metrics))[0]
  assert member.rows is None
  assert "kernel_share" not in member.curves


def test_null_is_a_gap(write, metrics):
  metrics[0]["dead_fraction"] = None
  member = training_metrics.read_metrics(write(metrics))[0]
  assert math.isnan(member.curves["dead_fraction"][0])
  assert not math.isnan(member.curves["dead_fraction"][1])


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="no training metrics at"):
    training_metrics.read_metrics(tmp_path / "metrics.jsonl")


def test_no_lines(write):
  with pytest.raises(ResultError, match="has no lines"):
    training_metrics.read_metrics(write([]))


def test_a_line_cut_short(write, metrics):
  path = write(metrics[:6])
  path.write_text(path.read_text()[:-30])
  with pytest.raises(ResultError, match="line 6 is not valid JSON.*resumes"):
    training_metrics.read_metrics(path)


def test_two_runs_in_one_file(write, metrics):
  with pytest.raises(ResultError, match="line 257: step 16 of member 0"):
    training_metrics.read_metrics(write([*metrics, metrics[0]]))


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("step", "16", "'step' is '16'"),
    ("fvu", "low", "'fvu' is 'low', expected a number"),
    ("member", None, "'member' is missing"),
  ],
)
def test_a_wrong_field_is_named(write, metrics, key, value, message):
  metrics[3][key] = value
  with pytest.raises(ResultError, match=f"line 4: {message}"):
    training_metrics.read_metrics(write(metrics))


def test_a_missing_curve_is_named(write, metrics):
  del metrics[1]["fvu"]
  with pytest.raises(ResultError, match="line 2: 'fvu' is missing"):
    training_metrics.read_metrics(write(metrics))


def test_a_line_that_is_no_object(write):
  with pytest.raises(ResultError, match="line 1 is 3"):
    training_metrics.read_metrics(write([3]))
