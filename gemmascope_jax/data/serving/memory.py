"""Memory that the C library keeps for the next message.

Messages come and go in megabytes, in memory that gRPC takes from malloc. glibc
gives blocks of that size back to the system as soon as they are free, so that
each message's pages are zeroed anew: a third of a client's time.
"""

from __future__ import annotations

import ctypes
import functools
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in <malloc.h>
_KEPT = 256 << 20  # bytes at most, at the end of a heap
_LARGEST = 32 << 20  # bytes of a block; glibc allows no more


@functools.cache
def keep_freed() -> bool:
  """Makes this process keep freed blocks of up to 32 MiB, 256 MiB at most.

  Returns:
    Whether that could be asked for: only glibc can.
  """
  if platform.libc_ver()[0] != "glibc":
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  asked = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT))
  return all([mallopt(*each) == 1 for each in asked])
