"""Metrics of planted records, their paired differences, and what is said."""

import numpy as np
import pytest

from gemmascope_jax.studies import side_by_side
from gemmascope_jax.studies.estimate import Estimate
from gemmascope_jax.studies.findings import AGREES, DISAGREES, UNCLEAR
from tests.studies import planted_records


def _case(planted):
  """Of {site: {name: (error, delta, L0)}}."""
  records, rows = {}, []
  for place, members in planted.items():
    site = planted_records.site()
    found = {n: planted_records.splice(site, *v) for n, v in members.items()}
    found[side_by_side.ZERO] = planted_records.splice(site, 9.0, 3.0, np.nan)
    found[side_by_side.MEAN] = planted_records.splice(site, 4.0, 2.0, np.nan)
    records[place] = (site, found)
    for name in members:
      rows.append(
        {"name": name, "site": place, "family": "jumprelu", "width": 8}
      )
  return rows, records


def test_every_number_is_its_records():
  rows, records = _case({"res.1": {"a": (0.5, 0.2, 10), "b": (0.2, 0.1, 30)}})
  result = side_by_side.result(rows, records)
  record, found = records["res.1"]
  (site,), (a, b) = result["sites"], result["saes"]
  assert site["clean_loss"] == record.clean().to_dict()
  assert site["mean"]["delta_loss"]["mean"] == pytest.approx(2.0, rel=0.05)
  assert a["fvu"] == found["a"].fvu(record).to_dict()
  assert b["kl"]["mean"] == pytest.approx(0.1, rel=0.05)
  assert a["loss_recovered_zero"]["mean"] == pytest.approx(
    1 - 0.2 / 3, rel=0.01
  )
  assert a["loss_recovered_mean"]["mean"] == pytest.approx(1 - 0.1, rel=0.01)
  assert [c["name"] for c in a["compat"]][0] == "FVU"
  assert a["compat"][0]["value"] == pytest.approx(a["fvu"]["mean"])


def test_differences_are_paired():
  rows, records = _case({"res.1": {"a": (0.5, 0.2, 10), "b": (0.2, 0.1, 30)}})
  (pair,) = side_by_side.result(rows, records)["differences"]
  record, found = records["res.1"]
  assert (pair["of"], pair["less"]) == ("b", "a")
  gap = found["b"].delta_loss(record).mean - found["a"].delta_loss(record).mean
  assert pair["delta_loss"]["mean"] == pytest.approx(gap)
  # Both have the same noise, so their difference has half of a's.
  alone = found["a"].delta_loss(record).stderr
  assert pair["delta_loss"]["stderr"] == pytest.approx(alone / 2, rel=1e-6)
  assert Estimate(**pair["l0"]).mean == pytest.approx(20, rel=0.05)


def test_sites_have_no_differences():
  one = {"a": (0.5, 0.2, 10)}
  rows, records = _case({"res.1": one, "mlp.1": one})
  assert side_by_side.result(rows, records)["differences"] == []


def _verdicts(planted):
  result = side_by_side.result(*_case(planted))
  return [f.verdict for f in side_by_side.findings(result)]


def test_findings_follow_what_is_planted():
  curve = lambda by: {
    "few": (0.5, 0.4 * by, 10),
    "some": (0.3, 0.2 * by, 30),
    "many": (0.2, 0.1 * by, 90),
  }
  assert _verdicts({"res.1": curve(3), "mlp.1": curve(1)}) == [AGREES, AGREES]
  assert _verdicts({"res.1": curve(1), "att.1": curve(3)})[0] == DISAGREES
  assert _verdicts({"res.1": curve(1), "att.1": curve(1)})[0] == UNCLEAR
  assert _verdicts({"res.1": curve(1), "att.2": curve(3)})[0] == UNCLEAR
  backwards = {"few": (0.5, 0.1, 10), "many": (0.2, 0.4, 90)}
  assert _verdicts({"res.1": backwards})[1] == DISAGREES
  assert _verdicts({"res.1": {"a": (0.5, 0.1, 10)}})[1] == UNCLEAR


def test_a_metric_is_read_off_between_neighbours():
  saes = [
    {"l0": {"mean": l0}, "fvu": {"mean": y, "stderr": 0.1}}
    for l0, y in ((100.0, 0.1), (10.0, 0.5))
  ]
  value, error = side_by_side.at_l0(saes, "fvu", 10**1.5)
  assert (value, error) == pytest.approx((0.3, 0.1))
  assert side_by_side.at_l0(saes, "fvu", 10.0)[0] == pytest.approx(0.5)
  assert side_by_side.at_l0(saes, "fvu", 9.0) is None
