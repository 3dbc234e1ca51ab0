import time

import jax
import pytest

from gemmascope_jax import parallel
from gemmascope_jax.parallel import distributed


def test_a_process_alone():
  assert parallel.start("off") == ""
  assert jax.process_count() == 1


@pytest.mark.parametrize(
  "how",
  [
    *("", "yes", "localhost,2,0", "localhost:1234,2", "localhost:1234,2,2"),
    *("localhost:99999,2,0", "localhost:0,2,0"),
  ],
)
def test_what_names_no_processes_is_refused(how):
  with pytest.raises(ValueError, match="expected auto, on, off, or HOST:PORT"):
    parallel.start(how)


def test_a_process_says_whom_it_waits_for(monkeypatch, capsys):
  def nobody_comes(*where, **limits):
    time.sleep(0.5)
    raise RuntimeError("DEADLINE_EXCEEDED")

  monkeypatch.setattr(jax.distributed, "initialize", nobody_comes)
  monkeypatch.setattr(distributed, "_QUIET_S", 0.05)
  with pytest.raises(ConnectionError, match="could not be joined: DEADLINE"):
    parallel.start("localhost:1234,3,1")
  assert capsys.readouterr().err == (
    "waiting up to 300 s for the other processes of 3, to meet at"
    " localhost:1234 (this is 1)\n"
  )


def test_a_lost_process_is_named_after_some_seconds_at_least():
  with pytest.raises(ValueError, match="--peer_timeout=0: expected 1 or more"):
    parallel.start("off", peer_timeout_s=0)
