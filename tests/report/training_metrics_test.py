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
  mine = [line for line in metrics if line["name"] == member.name]
  assert member.steps == tuple(line["step"] for line in mine)
  assert member.rows == tuple(line["step"] * 1024 for line in mine)
  assert member.curves["fvu"] == tuple(line["fvu"] for line in mine)
  assert set(member.curves) == {
    "fvu",
    "l0",
    "dead_fraction",
    "threshold_mean",
    "kernel_share",
    "loss",
    "rows_per_second",
  }
  assert member.rates.never == 60 and len(member.rates.counts) == 24
  assert member.rates.edges[0] == -6 and member.rates.edges[-1] == 0


def test_members_asked_for_now_in_their_order(write, metrics):
  path = write(metrics)
  names = ["sparsity 0.0008", "not begun", "sparsity 0.0001"]
  path.with_name("members.json").write_text(
    json.dumps([{"name": name, "folder": "x"} for name in names])
  )
  members = training_metrics.read_metrics(path)
  assert [member.name for member in members] == [names[0], names[2]]


def test_optional_curves_and_rows(write, metrics):
  for line in metrics:
    del line["kernel_share"], line["rows"], line["firing_rates"]
  member = training_metrics.read_metrics(write(metrics))[0]
  assert member.rows is None and member.rates is None
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
  path = write(metrics[:9])
  text = path.read_text()
  path.write_text(text[:-30])
  assert len(training_metrics.read_metrics(path)[0].steps) == 2
  path.write_text(text[:-30] + "\n")
  with pytest.raises(ResultError, match="line 9 is not valid JSON"):
    training_metrics.read_metrics(path)


def test_two_runs_in_one_file(write, metrics):
  with pytest.raises(ResultError, match="line 257: step 16 of sparsity 0.0001"):
    training_metrics.read_metrics(write([*metrics, metrics[0]]))


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("step", "16", "'step' is '16'"),
    ("fvu", "low", "'fvu' is 'low', expected a number"),
    ("name", None, "'name' is missing"),
    ("firing_rates", {"from": -6.0}, "'counts' is missing"),
  ],
)
def test_a_wrong_field_is_named(write, metrics, key, value, message):
  metrics[-1][key] = value
  with pytest.raises(ResultError, match=message):
    training_metrics.read_metrics(write(metrics))


def test_a_missing_curve_is_named(write, metrics):
  del metrics[1]["fvu"]
  with pytest.raises(ResultError, match="line 2: 'fvu' is missing"):
    training_metrics.read_metrics(write(metrics))


def test_a_line_that_is_no_object(write):
  with pytest.raises(ResultError, match="line 1 is 3"):
    training_metrics.read_metrics(write([3]))
