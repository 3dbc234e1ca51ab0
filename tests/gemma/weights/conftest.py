"""The tiny model, and a cache folder of each test's own."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tiny_files  # noqa: E402


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
  """A cache of the test's own, so that nothing is found that it did not make."""
  monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture(scope="session")
def params() -> dict[str, Any]:
  """The tiny model's parameters."""
  return tiny_files.random_params()


@pytest.fixture
def hf_folder(tmp_path, params) -> pathlib.Path:
  """The tiny model in Hugging Face's format, in one file, with tokenizer."""
  folder = tiny_files.write_hf(tmp_path / "tiny", tiny_files.hf_tensors(params))
  tiny_files.write_tokenizer(folder)
  return folder
