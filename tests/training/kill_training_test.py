"""A few kills on each run of the tests; `kill_training.py` for more."""

from tests.training import kill_training


def test_killed_runs_end_in_the_same_bytes(tmp_path):
  kill_training.survive(tmp_path, kills=2, seed=1)
