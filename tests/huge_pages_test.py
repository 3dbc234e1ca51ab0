"""A binary starts once more to get huge pages: once, and only where it helps."""

import os
import platform
import subprocess
import sys

import pytest

from experiments import _huge_pages

_GLIBC = ("glibc", "2.36")
# Prints what it was started with, as a program that had to start again would.
_PROGRAM = """
import os, sys
from experiments import _huge_pages
print("started", flush=True)
_huge_pages.use()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


@pytest.fixture(name="asked_for")
def _asked_for(tmp_path):
  path = tmp_path / "enabled"
  path.write_text("always [madvise] never\n")
  return path


def test_asked_for_where_they_come_only_then(asked_for):
  assert _huge_pages.worthwhile({}, _GLIBC, asked_for)


@pytest.mark.parametrize(
  ("environment", "libc"),
  [
    ({"GLIBC_TUNABLES": ""}, _GLIBC),  # the user's no
    ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, _GLIBC),  # done already
    ({}, ("glibc", "2.31")),
    ({}, ("", "")),
    ({}, ("glibc", "unknown")),
  ],
)
def test_not_asked_for_elsewhere(environment, libc, asked_for):
  assert not _huge_pages.worthwhile(environment, libc, asked_for)


def test_not_asked_for_where_the_system_has_none(tmp_path, asked_for):
  assert not _huge_pages.worthwhile({}, _GLIBC, tmp_path / "missing")
  asked_for.write_text("[always] madvise never\n")
  assert not _huge_pages.worthwhile({}, _GLIBC, asked_for)


def test_a_program_starts_again_once_with_its_arguments():
  if not _huge_pages.worthwhile({}, platform.libc_ver(), _huge_pages._ENABLED):
    pytest.skip("no huge pages to ask for on this system")
  environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  found = subprocess.run(
    [sys.executable, "-c", _PROGRAM, "--one", "two words"],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert found.stdout.splitlines() == [
    "started",
    "started",
    "glibc.malloc.hugetlb=1 ['--one', 'two words']",
  ]


def test_a_binary_does_so_before_it_imports_anything_large():
  if not _huge_pages.worthwhile({}, platform.libc_ver(), _huge_pages._ENABLED):
    pytest.skip("no huge pages to ask for on this system")
  environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  traced = subprocess.run(
    [sys.executable, "-v", "-m", "experiments.train", "--help"],
    env=environment,
    capture_output=True,
    text=True,
  ).stderr
  first, second = (
    traced.index(f"import '{name}'") for name in ("experiments", "jax")
  )
  assert traced.count("import 'jax' #") == 1 and first < second
