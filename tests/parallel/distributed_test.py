import jax
import pytest

from gemmascope_jax import parallel


def test_a_process_alone():
  assert parallel.start("off") == ""
  assert jax.process_count() == 1


@pytest.mark.parametrize(
  "how", ["", "yes", "localhost,2,0", "localhost:1234,2", "localhost:1234,2,2"]
)
def test_what_names_no_processes_is_refused(how):
  with pytest.raises(ValueError, match="expected auto, on, off, or HOST:PORT"):
    parallel.start(how)


def test_a_lost_process_is_named_after_some_seconds_at_least():
  with pytest.raises(ValueError, match="--peer_timeout=0: expected 1 or more"):
    parallel.start("off", peer_timeout_s=0)
