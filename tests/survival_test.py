"""A few kills; `tests/survival.py` for more."""

import pytest

from tests import survival


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bytes(tmp_path):
  survival.survive(tmp_path / "runs", kills=2, seed=1)
