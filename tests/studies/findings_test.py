"""What several effects say together."""

import pytest

from gemmascope_jax.studies.findings import (
  AGREES,
  DISAGREES,
  UNCLEAR,
  Finding,
  verdict,
)


@pytest.mark.parametrize(
  ("signs", "expected"),
  [
    ([3, 2.1], AGREES),
    ([-3, -2.1], DISAGREES),
    ([3, -3], UNCLEAR),
    ([3, 1.9], UNCLEAR),
    ([-3, 0], UNCLEAR),
    ([], UNCLEAR),
  ],
)
def test_all_have_to_be_sure(signs, expected):
  assert verdict(signs) == expected


def test_another_word_is_refused():
  with pytest.raises(ValueError, match="verdict 'maybe'"):
    Finding("2", "claim", "seen", "maybe")
