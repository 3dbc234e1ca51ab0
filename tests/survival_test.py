"""A few kills on each run of the tests; `tests/survival.py` for more."""

from tests import survival


def test_killed_runs_end_in_the_same_bytes(tmp_path):
  survival.survive(tmp_path / "runs", kills=2, seed=1)
