"""Compiling the kernels: once, whole or not at all, and what if one can't."""

import os
import subprocess
import sys

import pytest

from gemmascope_jax.sae import kernels

_RUN = (
  "from gemmascope_jax.sae import kernels;"
  "print('available', kernels.available())"
)


def _ask(cache, **environment):
  found = subprocess.run(
    [sys.executable, "-c", _RUN],
    env=os.environ
    | {"JAX_PLATFORMS": "cpu", "GEMMASCOPE_CACHE": str(cache)}
    | environment,
    capture_output=True,
    text=True,
  )
  assert found.returncode == 0, found.stderr
  return found


@pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")
@pytest.mark.slow
def test_the_kernels_are_compiled_once(tmp_path):
  assert "available True" in _ask(tmp_path).stdout
  (library,) = (tmp_path / "kernels").iterdir()
  time = library.stat().st_mtime_ns
  assert "available True" in _ask(tmp_path).stdout
  assert library.stat().st_mtime_ns == time
  assert list((tmp_path / "kernels").iterdir()) == [library]


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_without_a_compiler_training_is_dense_and_says_so(tmp_path, compiler):
  found = _ask(tmp_path, CXX=compiler)
  assert "available False" in found.stdout
  assert "install a C++ compiler" in found.stderr
  assert not list((tmp_path / "kernels").iterdir())
