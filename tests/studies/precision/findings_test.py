"""Verdicts on figure 10 follow what is planted."""

import pytest

from gemmascope_jax.studies.findings import AGREES, DISAGREES, UNCLEAR
from gemmascope_jax.studies.precision import findings

REASON = {"sequences": 3, "of": 3, "reason": "all is lost"}


def _estimate(mean, stderr=0.01):
  return {"mean": mean, "stderr": stderr, "n": 9}


def _sae(gap, stderr=1e-4, delta=0.2, bad=None, where="both"):
  change = None if bad else _estimate(gap, stderr)
  row = {
    "format": "bfloat16",
    "in_format": where,
    "less_float32": {"delta_loss": change},
    "not_finite": bad,
  }
  large = row | {"format": "int4", "less_float32": {"delta_loss": _estimate(9)}}
  exact = {"delta_loss": _estimate(delta)}
  return {"name": f"at {gap}", "float32": exact, "rows": [large, row]}


@pytest.mark.parametrize(
  "saes, verdict",
  [
    ([_sae(1e-5)], AGREES),  # less than two standard errors
    ([_sae(-3e-3)], AGREES),  # 1.5 % of the delta loss
    ([_sae(1e-5), _sae(6e-3)], DISAGREES),  # 3 % of it, and surely
    ([_sae(-6e-3)], DISAGREES),
    ([_sae(6e-3, 4e-3)], AGREES),  # not surely
    ([_sae(6e-3, 0.05)], UNCLEAR),  # noise that would hide a quarter of it
    ([_sae(1e-5), _sae(1e-5, None)], UNCLEAR),
    ([_sae(0.0, bad=REASON)], DISAGREES),
    ([_sae(1e-5, where="sae")], UNCLEAR),
    ([], UNCLEAR),
  ],
)
def test_verdicts(saes, verdict):
  (found,) = findings({"saes": saes})
  assert (found.figure, found.verdict) == ("10", verdict)
  assert "negligibly" in found.claim


def test_numbers_and_errors_are_said():
  (found,) = findings({"saes": [_sae(-6e-3), _sae(0.0, bad=REASON)]})
  assert "at -0.006: -0.006 ± 0.0001 (3.00% of 0.2)" in found.seen
  assert "all is lost" in found.seen
