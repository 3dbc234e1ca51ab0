import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_gemma import POLICY

from gemmascope_jax.data.policy import (
  PolicyMismatchError,
  TokenPolicy,
  count_kept,
)

PAD, EOS, BOS = 0, 1, 2
TOKENS = np.array([[BOS, 7, EOS, 8, PAD], [PAD, PAD, BOS, 9, 9]])


def test_special_positions_never_count():
  expected = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 1, 1]], bool)
  np.testing.assert_array_equal(POLICY.keep(TOKENS), expected)
  np.testing.assert_array_equal(POLICY.keep(jnp.asarray(TOKENS)), expected)
  assert count_kept(POLICY, TOKENS).tolist() == [2, 2]


def test_losses_count_at_kept_positions_that_predict_no_padding():
  # 7 predicts EOS: counts. 8 predicts padding: does not.
  expected = np.array([[0, 1, 0, 0], [0, 0, 0, 1]], bool)
  np.testing.assert_array_equal(POLICY.keep_loss(TOKENS), expected)


def test_round_trip_and_mismatch():
  assert TokenPolicy.from_dict(POLICY.to_dict()) == POLICY
  POLICY.require_same(POLICY, "this", "that")
  other = TokenPolicy((BOS,), PAD)
  with pytest.raises(PolicyMismatchError, match="the SAE uses .*the store was"):
    POLICY.require_same(other, "the SAE", "the store")


def _by_hand(policy, tokens):
  """The oracle: look at every position of every row."""
  kept = np.ones(tokens.shape, bool)
  for s, row in enumerate(tokens.tolist()):
    for t, token in enumerate(row):
      kept[s, t] &= token not in policy.excluded_ids
      for sequence in policy.excluded_sequences:
        if tuple(row[t : t + len(sequence)]) == sequence:
          kept[s, t : t + len(sequence)] = False
  return kept


@pytest.mark.parametrize(
  "sequences",
  [((5, 6, 7),), ((5, 5),), ((5,), (6, 5, 6)), ((5,) * 40,), ((5,) * 41,)],
)
def test_excluded_sequences_are_left_out_wherever_they_stand(sequences):
  policy = TokenPolicy((PAD, EOS, BOS), PAD, sequences)
  tokens = np.random.default_rng(0).integers(0, 8, (200, 40), np.int32)
  tokens[0] = 5  # occurrences that overlap
  tokens[1, -3:] = 5, 6, 7
  tokens[2, :3] = 5, 6, 7
  expected = _by_hand(policy, tokens)
  np.testing.assert_array_equal(policy.keep(tokens), expected)
  jitted = jax.jit(policy.keep)(jnp.asarray(tokens))
  np.testing.assert_array_equal(jitted, expected)
  # The last position belongs to a row that is looked at whole.
  np.testing.assert_array_equal(
    policy.keep_loss(tokens), expected[:, :-1] & (tokens[:, 1:] != PAD)
  )
  assert TokenPolicy.from_dict(policy.to_dict()) == policy
  assert hash(TokenPolicy.from_dict(policy.to_dict())) == hash(policy)


def test_a_policy_without_sequences_is_stored_as_ever():
  assert POLICY.to_dict() == {"excluded_ids": [0, 1, 2], "pad_id": 0}
  with_prefix = TokenPolicy((PAD, EOS, BOS), PAD, ((5, 6),))
  with pytest.raises(PolicyMismatchError, match="excluded_sequences"):
    with_prefix.require_same(POLICY, "the SAE", "the store")
  with pytest.raises(ValueError, match="one is empty"):
    TokenPolicy((PAD,), PAD, ((),))


def test_counting_needs_no_memory_of_the_size_of_the_windows(tmp_path):
  random = np.random.default_rng(0)
  np.save(tmp_path / "t.npy", random.integers(0, 9, (40_000, 256), np.int32))
  windows = np.load(tmp_path / "t.npy", mmap_mode="r")
  policy = TokenPolicy((PAD, EOS, BOS), PAD, ((5, 6),))
  tracemalloc.start()
  counts = count_kept(policy, windows)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < windows.nbytes / 4
  assert counts.dtype == np.int64
  np.testing.assert_array_equal(counts, policy.keep(windows).sum(axis=1))
