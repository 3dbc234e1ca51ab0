"""Interpolation to a transcoder's L0, and planted differences."""

import math

import numpy as np
import pytest

from gemmascope_jax.studies import transcoders
from gemmascope_jax.studies.findings import AGREES, DISAGREES, UNCLEAR
from tests.studies import planted_records


def _rows(members):
  return [
    {
      "name": name,
      "site": "mlp.1",
      "reads": "mlp.1" if kind == "sae" else "mlp_in.1",
      "skip": kind == "skip transcoder",
    }
    for name, (kind, *_) in members.items()
  ]


def _result(members):
  """Of {name: (kind, squared error, delta loss, L0)}."""
  record = planted_records.site()
  spliced = {
    name: planted_records.splice(record, *numbers, seed=number)
    for number, (name, (_, *numbers)) in enumerate(members.items())
  }
  found = {"mlp.1": (record, spliced)}
  return transcoders.result(_rows(members), found), record, spliced


SAES = {"a": ("sae", 0.9, 0.3, 10), "b": ("sae", 0.3, 0.1, 40)}


def test_an_sae_is_interpolated_in_log_l0():
  members = SAES | {"t": ("transcoder", 0.8, 0.6, 20)}
  result, record, spliced = _result(members)
  (found,) = result["comparisons"]
  l0 = {n: s.l0(record).mean for n, s in spliced.items()}
  share = math.log(l0["t"] / l0["a"]) / math.log(l0["b"] / l0["a"])
  deltas = {n: s.delta_loss(record).mean for n, s in spliced.items()}
  between = (1 - share) * deltas["a"] + share * deltas["b"]
  assert found["between"] == ["a", "b"] and found["l0"] == l0["t"]
  assert found["delta_loss"]["mean"] == pytest.approx(deltas["t"] - between)
  fvu = {n: s.fvu(record).mean for n, s in spliced.items()}
  between = (1 - share) * fvu["a"] + share * fvu["b"]
  assert found["fvu"]["mean"] == pytest.approx(fvu["t"] - between)
  # Paired: resampled with the weights as they are.
  rng = np.random.default_rng(0)
  each = {n: s.rise(record) for n, s in spliced.items()}
  per = record.loss_count
  drawn = []
  for _ in range(2_000):
    rows = rng.integers(0, len(per), len(per))
    mean = {n: e[rows].sum() / per[rows].sum() for n, e in each.items()}
    drawn.append(mean["t"] - (1 - share) * mean["a"] - share * mean["b"])
  assert found["delta_loss"]["stderr"] == pytest.approx(np.std(drawn), rel=0.06)


def test_places_and_shares():
  assert transcoders.weights(10, [10, 40]) == [(0, 1.0), (1, 0.0)]
  assert transcoders.weights(40, [10, 40]) == [(0, 0.0), (1, 1.0)]
  (low, first), (high, second) = transcoders.weights(20, [5, 10, 40])
  assert (low, high) == (1, 2)
  assert first == pytest.approx(0.5) and second == pytest.approx(0.5)
  assert transcoders.weights(41, [10, 40]) is None
  assert transcoders.weights(10, [10]) is None
  assert transcoders.weights(10, [10, 10]) == [(0, 0.5), (1, 0.5)]


@pytest.mark.parametrize(
  ("delta", "verdict"), [(0.6, AGREES), (0.05, DISAGREES), (0.2, UNCLEAR)]
)
def test_findings_follow_what_is_planted(delta, verdict):
  members = SAES | {"t": ("transcoder", 0.8, delta, 20)}
  first, second = transcoders.findings(_result(members)[0])
  assert first.verdict == verdict
  assert second.verdict == UNCLEAR and "No skip transcoder" in second.seen


def test_the_skip_connections_part_is_found():
  members = SAES | {
    "t": ("transcoder", 0.8, 0.6, 15),
    "u": ("transcoder", 0.7, 0.5, 35),
    "s": ("skip transcoder", 0.4, 0.2, 20),
  }
  result, *_ = _result(members)
  kinds = [(c["kind"], c["less"]) for c in result["comparisons"]]
  assert ("skip transcoder", "transcoder") in kinds
  assert ("skip transcoder", "sae") in kinds
  assert transcoders.findings(result)[1].verdict == AGREES


def test_outside_the_saes_l0s_nothing_is_said():
  members = SAES | {"t": ("transcoder", 0.8, 0.6, 90)}
  result, *_ = _result(members)
  assert not result["comparisons"]
  assert transcoders.findings(result)[0].verdict == UNCLEAR


def test_saes_alone_are_refused():
  with pytest.raises(ValueError, match="no transcoder is given"):
    _result(SAES)
