"""What is left at a budget, against a search by hand."""

import numpy as np
import pytest

from gemmascope_jax.steering import budget

Q = 8


def _one(effect, cost, noise=0.0, seed=0):
  """Sums over 4 answers of each prompt; the cost over 10 tokens of each."""
  rng = np.random.default_rng(seed)
  effect = np.broadcast_to(effect, Q) + noise * rng.normal(size=Q)
  return {
    "words": np.stack([4 * effect, np.full(Q, 4.0)]),
    "text_loss": np.stack(
      [10 * np.broadcast_to(np.float64(cost), Q), np.full(Q, 10.0)]
    ),
  }


PLAIN = _one(0.05, 3.0, 0.01)
# Even prompts like strength 2 most, odd ones strength 1; 4 costs too much.
EVEN = np.arange(Q) % 2 == 0
FOUND = {
  ("add", 1.0): _one(np.where(EVEN, 0.2, 0.5), 3.1, 0.02, 1),
  ("add", 2.0): _one(np.where(EVEN, 0.6, 0.3), 3.4, 0.02, 2),
  ("add", 4.0): _one(0.9, 4.0, 0.02, 3),
  ("random", 1.0): _one(0.04, 3.1),
}


def _at(method, most, **changes):
  given = {"found": FOUND, "plain": PLAIN, "effect": "words"} | changes
  return budget.at_budget(
    method, cost="text_loss", most=most, first="add", **given
  )


def test_each_half_is_scored_at_the_others_choice():
  found = _at("add", 0.5)
  # Even prompts get what odd ones chose, and the other way round.
  assert found["strengths"] == [1.0, 2.0]
  sums = np.where(
    EVEN, FOUND["add", 1.0]["words"][0], FOUND["add", 2.0]["words"][0]
  )
  each = sums / 4
  np.testing.assert_allclose(found["effect"]["mean"], each.mean())
  np.testing.assert_allclose(
    found["effect"]["stderr"], each.std(ddof=1) / np.sqrt(Q)
  )
  gain = each - PLAIN["words"][0] / 4
  np.testing.assert_allclose(found["gain"]["mean"], gain.mean())
  np.testing.assert_allclose(
    found["gain"]["stderr"], gain.std(ddof=1) / np.sqrt(Q)
  )
  assert found["lead"] is None
  # Worse than the best strength of all, whose luck it does not have.
  assert found["effect"]["mean"] < 0.45


@pytest.mark.parametrize(
  ("most", "strengths"),
  [(0.05, [0.0, 0.0]), (0.2, [1.0, 1.0]), (1.0, [4.0, 4.0])],
)
def test_the_budget_decides_what_may_be_chosen(most, strengths):
  found = _at("add", most)
  assert found["strengths"] == strengths
  if not any(strengths):
    assert found["gain"]["mean"] == 0 == found["gain"]["stderr"]


def test_what_does_not_help_is_not_chosen_and_leads_are_paired():
  found = _at("random", 0.5)
  assert found["strengths"] == [0.0, 0.0]
  ours = np.where(
    EVEN, FOUND["add", 1.0]["words"][0], FOUND["add", 2.0]["words"][0]
  )
  lead = (PLAIN["words"][0] - ours) / 4
  np.testing.assert_allclose(found["lead"]["mean"], lead.mean())
  np.testing.assert_allclose(
    found["lead"]["stderr"], lead.std(ddof=1) / np.sqrt(Q)
  )


def test_nothing_to_count_is_none_and_not_chosen():
  empty = _one(0.0, 3.0)
  empty["words"] = np.zeros((2, Q))
  assert budget.value(empty, "words") is None
  assert budget.change(empty, PLAIN, "words") is None
  found = _at("add", 0.5, found={("add", 1.0): empty})
  assert found["strengths"] == [0.0, 0.0]
