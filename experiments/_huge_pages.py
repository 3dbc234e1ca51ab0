"""Memory in pages of 2 MiB, where the system has them to be asked for.

A step's arrays are hundreds of megabytes that XLA takes from malloc and gives
back, so that the system hands out, and zeroes, the same pages anew each time:
60,000 of 4 KiB a step of 2,048 rows and 16,384 latents, a fifth of its time or more.
In pages of 2 MiB it is 700. glibc asks for them if it is told so before the
program starts, so the program starts once more; see docs/benchmarks.md.
"""

from __future__ import annotations

import os
import pathlib
import platform
import re
import sys
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
_ASK = "glibc.malloc.hugetlb=1"
_SINCE = (2, 35)  # of glibc
_ENABLED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_in_binaries() -> None:
  """`use` where `python -m experiments.NAME` was started.

  Called before anything large is imported, as all is imported again. Benchmarks
  measure what they measure: they are left alone.
  """
  given = sys.orig_argv[1:]
  named = given[given.index("-m") + 1 :][:1] if "-m" in given else []
  if any(
    re.fullmatch(r"experiments\.(?!benchmark)\w+", each) for each in named
  ):
    use()


def use() -> None:
  """Starts this program again with huge pages, unless it has been.

  Does nothing where that changes nothing: no glibc, no huge pages, or those
  that come unasked; and nothing where the user has set GLIBC_TUNABLES, to
  whatever value (an empty one says no).
  """
  if not worthwhile(os.environ, platform.libc_ver(), _ENABLED):
    return
  os.environ[VARIABLE] = _ASK
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def worthwhile(
  environment: Mapping[str, str],
  libc: tuple[str, str],
  enabled: pathlib.Path,
) -> bool:
  """Whether starting again would bring huge pages.

  Args:
    environment: variables.
    libc: as of `platform.libc_ver`.
    enabled: the system's setting, "always [madvise] never".
  """
  if VARIABLE in environment or libc[0] != "glibc":
    return False
  try:
    version = tuple(int(part) for part in libc[1].split(".")[:2])
    return version >= _SINCE and "[madvise]" in enabled.read_text()
  except (OSError, ValueError):
    return False
