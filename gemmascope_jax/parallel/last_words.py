"""Says on stderr that a process ended without a word of its own.

A process that loses another is ended by JAX's runtime from a thread of C++, and
one that is out of memory by the kernel: no Python runs then. So a shell waits
for the end of a pipe: nothing but a process's own farewell keeps it silent.
"""

from __future__ import annotations

import shutil
import subprocess

_SCRIPT = 'read -r farewell || printf "%s\\n" "$1" >&2'
_waiting: list[subprocess.Popen] = []


def promise(message: str) -> None:
  """From now on `message` is printed if the process just disappears."""
  shell = shutil.which("sh")
  if shell is None or _waiting:
    return
  _waiting.append(
    subprocess.Popen(
      [shell, "-c", _SCRIPT, "sh", message],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C is for the process itself
    )
  )


def keep() -> None:
  """The process speaks for itself: nothing is printed any more."""
  while _waiting:
    shell = _waiting.pop()
    try:
      shell.communicate(b"farewell\n", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
      shell.kill()
