"""Lets the tests of this folder import `tiny_gemma`."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tiny_gemma  # noqa: E402

from gemmascope_jax.data.stores.harvest import harvest  # noqa: E402


@pytest.fixture(scope="session")
def lm():
  return tiny_gemma.lm()


@pytest.fixture(scope="session")
def store(lm, tmp_path_factory):
  """A finished store; tests must not write to it."""
  root = tmp_path_factory.mktemp("store") / "whole"
  return harvest(
    lm,
    tiny_gemma.windows(),
    tiny_gemma.SITES,
    root,
    tiny_gemma.POLICY,
    config={"note": "tests"},
    **tiny_gemma.OPTIONS,
  )
