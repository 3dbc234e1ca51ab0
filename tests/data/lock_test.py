import json
import os
import socket
import subprocess
import sys

import pytest

from gemmascope_jax.data.lock import LockedError, write_lock

HOLD = """
import sys, time
from gemmascope_jax.data.lock import write_lock
with write_lock(sys.argv[1], "lock"):
  print("held", flush=True)
  time.sleep(60)
"""


def test_second_writer_is_refused_until_the_first_is_killed(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE
  )
  try:
    assert holder.stdout.readline() == b"held\n"
    message = f"written by process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(LockedError, match=message):
      with write_lock(tmp_path, "lock"):
        pass
  finally:
    holder.kill()
    holder.wait()
    holder.stdout.close()
  assert (tmp_path / "lock").exists()
  with write_lock(tmp_path, "lock"):
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
  assert not (tmp_path / "lock").exists()


def test_same_process_is_refused_too(tmp_path):
  with write_lock(tmp_path, "lock"):
    with pytest.raises(LockedError, match=str(os.getpid())):
      with write_lock(tmp_path, "lock"):
        pass
    assert (tmp_path / "lock").exists()


def test_lock_of_another_host_is_not_taken_over(tmp_path):
  held = {"host": "elsewhere", "pid": 5}
  (tmp_path / "lock").write_text(json.dumps(held))
  with pytest.raises(LockedError, match=r"process 5 on elsewhere; .* delete "):
    with write_lock(tmp_path, "lock"):
      pass
  assert json.loads((tmp_path / "lock").read_text()) == held


def test_lock_is_given_back_after_an_error(tmp_path):
  with pytest.raises(KeyError):
    with write_lock(tmp_path / "new", "lock"):
      raise KeyError
  assert not (tmp_path / "new" / "lock").exists()
