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
