"""Process-wide settings that must be in place before jax is imported.

On a GPU: JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false, and tests that
need more devices than there are skip themselves.
"""

import atexit
import gc
import importlib.metadata
import os
import re
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight virtual devices on however few cores there are: the CPU client's
# thread pool must not be smaller than the number of devices, or steps that
# wait for a collective starve the ones that would complete it.
os.environ.setdefault("PJRT_NPROC", "16")
# Most of the tests' time goes into compiling programs that run for
# milliseconds, so they are compiled fast, not for speed: that of a tiny Gemma's
# gradient took half the time, and with the flags below a fifth.
if os.environ["JAX_PLATFORMS"] == "cpu":
  os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  + " --xla_allow_excess_precision=false"
  + " --xla_cpu_parallel_codegen_split_count=1"
)
if importlib.metadata.version("jax").startswith("0.10."):  # newer: no such flag
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One process compiles a program, the others of this run read it: the workers,
# and the binaries and notebooks that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _compiled = tempfile.mkdtemp(prefix="compiled_for_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_finish():
  """Spares the collector what stays: it takes up to a tenth of the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 20, 100)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
  """Skips what needs a mesh that this accelerator is too small for."""
  try:
    return (yield)
  except ValueError as error:
    if jax.default_backend() != "cpu" and re.search(
      r"need \d+ devices, but there are \d+", str(error)
    ):
      pytest.skip(str(error))
    raise
