"""Planted effects: an SAE that fails on one subset, and one that does not."""

import numpy as np
import pytest

from gemmascope_jax.studies import subsets
from gemmascope_jax.studies.findings import AGREES, DISAGREES, UNCLEAR
from tests.studies import planted_records

ABOUT = {
  "arxiv": {"stand_in": None, "sequences": 30},
  "dm_mathematics": {"stand_in": None, "sequences": 30},
  "europarl": {"stand_in": "speeches", "sequences": 30},
  "hackernews": {"stand_in": "none known", "missing": "none"},
}


def _result(deltas, seed=0):
  """Of {SAE: {subset: delta loss}}."""
  records = {}
  for number, subset in enumerate(ABOUT):
    if any(subset not in of for of in deltas.values()):
      continue
    record = planted_records.site(seed + number)
    records[subset] = {
      name: (record, planted_records.splice(record, 0.5, of[subset], 9))
      for name, of in deltas.items()
    }
  rows = [{"name": name, "site": "res.1"} for name in deltas]
  return subsets.result(rows, records, ABOUT), records


def _verdicts(deltas):
  return [each.verdict for each in subsets.findings(_result(deltas)[0])]


def test_every_subset_has_its_own_numbers():
  result, records = _result(
    {"a": {"arxiv": 0.5, "dm_mathematics": 0.1, "europarl": 0.9}}
  )
  (row,) = result["saes"]
  assert [each["name"] for each in result["subsets"]] == list(ABOUT)
  assert set(row["subsets"]) == {"arxiv", "dm_mathematics", "europarl"}
  for name, found in row["subsets"].items():
    record, spliced = records[name]["a"]
    assert found["delta_loss"] == spliced.delta_loss(record).to_dict()
    assert found["fvu"] == spliced.fvu(record).to_dict()
    assert found["clean_loss"] == record.clean().to_dict()
    rise = (spliced.loss - record.loss_clean)[record.keep_loss]
    assert found["delta_loss"]["mean"] == pytest.approx(np.mean(rise))


@pytest.mark.parametrize(
  ("deltas", "verdicts"),
  [
    ({"arxiv": 0.5, "dm_mathematics": 0.1, "europarl": 0.9}, [AGREES] * 2),
    ({"arxiv": 0.5, "dm_mathematics": 0.9, "europarl": 0.1}, [DISAGREES] * 2),
    (
      {"arxiv": 0.5, "dm_mathematics": 0.1, "europarl": 0.3},
      [AGREES, DISAGREES],
    ),
    ({"arxiv": 0.5, "dm_mathematics": 0.5, "europarl": 0.5}, [UNCLEAR] * 2),
    ({"arxiv": 0.5, "dm_mathematics": 0.1}, [AGREES, UNCLEAR]),
    ({"arxiv": 0.5}, [UNCLEAR] * 2),
  ],
)
def test_what_is_planted_is_found_and_nothing_else(deltas, verdicts):
  assert _verdicts({"a": deltas}) == verdicts


def test_saes_that_disagree_say_nothing():
  one = {"arxiv": 0.5, "dm_mathematics": 0.1, "europarl": 0.9}
  other = {"arxiv": 0.5, "dm_mathematics": 0.9, "europarl": 0.1}
  assert _verdicts({"a": one, "b": other}) == [UNCLEAR] * 2


def test_a_stand_in_is_said():
  result, _ = _result(
    {"a": {"arxiv": 0.5, "dm_mathematics": 0.1, "europarl": 0.9}}
  )
  best, worst = subsets.findings(result)
  assert "Text here: speeches" in worst.seen and "Text here" not in best.seen
