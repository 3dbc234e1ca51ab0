import platform
import subprocess
import sys

import pytest

# Blocks of 4 MiB, written and freed again and again. The system counts a fault
# for each page that it has to give (and zero) anew.
CODE = """
import ctypes, resource, sys
from gemmascope_jax.data.serving import memory
if sys.argv[1] == "kept":
  assert memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
  # Larger each time, or glibc learns the size and keeps it by itself.
  size = (4 << 20) + (_ << 16)
  block = libc.malloc(size)
  ctypes.memset(block, 1, size)
  libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="only glibc can be asked"
)
def test_freed_memory_is_not_zeroed_again():
  faults = {
    how: int(
      subprocess.check_output([sys.executable, "-c", CODE, how], text=True)
    )
    for how in ("kept", "given back")
  }
  assert faults["kept"] < faults["given back"] / 5
