"""Verdicts: right on planted differences, and seldom wrong on none."""

import numpy as np
import pytest

from gemmascope_jax.studies.interpretability import summary
from gemmascope_jax.studies.interpretability.findings import findings


def _family(name, values):
  return {"family": name, "score": summary.mean(values)}


def _result(random, means, n=400, untrained=0.1):
  trained = {
    name: random.normal(mean, 0.3, n)
    for name, mean in zip(("jumprelu", "topk", "gated"), means, strict=False)
  }
  groups = [_family(name, values) for name, values in trained.items()]
  if untrained is not None:
    groups.append(_family("untrained", random.normal(untrained, 0.3, n)))
  return {"families": groups}


def _verdicts(result):
  return [finding.verdict for finding in findings(result)]


def test_equal_families_agree_and_unequal_ones_do_not():
  random = np.random.default_rng(0)
  assert _verdicts(_result(random, (0.5, 0.5, 0.5))) == ["agrees", "agrees"]
  assert _verdicts(_result(random, (0.5, 0.5, 0.3))) == ["disagrees", "agrees"]
  assert _verdicts(_result(random, (0.1, 0.1, 0.1)))[1] == "disagrees"
  assert _verdicts(_result(random, (0.5, 0.5, 0.0)))[1] == "disagrees"
  first, second = findings(_result(random, (0.5, 0.3)))
  assert "jumprelu 0.4" in first.seen or "jumprelu 0.5" in first.seen
  assert "jumprelu - topk: 0." in first.seen and "±" in first.seen
  assert "topk - untrained: 0." in second.seen


def test_few_latents_are_too_little_data():
  random = np.random.default_rng(1)
  assert _verdicts(_result(random, (0.5, 0.5), n=10))[0] == "too little data"
  assert _verdicts(_result(random, (0.5,)))[0] == "too little data"
  without = _result(random, (0.5, 0.5), untrained=None)
  assert _verdicts(without) == ["agrees", "too little data"]
  unscored = _result(random, (0.5, 0.5))
  unscored["families"][0]["score"] = None
  assert _verdicts(unscored)[0] == "too little data"


def test_where_nothing_differs_it_seldom_says_so():
  random = np.random.default_rng(2)
  verdicts = [
    _verdicts(_result(random, (0.5, 0.5, 0.5), n=300)) for _ in range(300)
  ]
  wrong = np.mean([first == "disagrees" for first, _ in verdicts])
  assert wrong < 0.08  # 5% is what it promises
  null = [_verdicts(_result(random, (0.1, 0.1), n=300))[1] for _ in range(200)]
  assert np.mean([verdict == "agrees" for verdict in null]) < 0.05


@pytest.mark.parametrize(
  ("yes", "verdict"), [((0.65, 0.66), "agrees"), ((0.65, 0.3), "disagrees")]
)
def test_ratings_are_judged_as_well(yes, verdict):
  random = np.random.default_rng(3)
  result = _result(random, (0.5, 0.5))
  families = [
    {"family": name, "yes": summary.mean(np.arange(3_000) < 3_000 * share)}
    for name, share in zip(("jumprelu", "topk"), yes, strict=True)
  ]
  result["ratings"] = {"families": families}
  found = findings(result)
  assert [f.figure for f in found] == ["7", "7", "6"]
  assert found[2].verdict == verdict
