"""A few kills; `kill_training.py` for more."""

import pytest

from tests.training import kill_training


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bytes(tmp_path):
  kill_training.survive(tmp_path, kills=2, seed=1)
