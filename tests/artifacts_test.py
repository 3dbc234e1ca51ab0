"""Files appear whole or not at all, and say what they are."""

import errno
import pathlib

import ml_dtypes
import numpy as np
import pytest

from gemmascope_jax import artifacts


def test_a_file_appears_only_when_it_is_complete(tmp_path):
  path = tmp_path / "a" / "x.bin"
  with artifacts.atomic_write(path) as file:
    file.write(b"half")
    assert not path.exists()
  assert path.read_bytes() == b"half"
  assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
  path = tmp_path / "x.bin"
  path.write_bytes(b"old")
  with pytest.raises(RuntimeError), artifacts.atomic_write(path) as file:
    file.write(b"new")
    raise RuntimeError
  assert path.read_bytes() == b"old"
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_what_to_do_and_loses_nothing(tmp_path, code):
  path = tmp_path / "x.bin"
  path.write_bytes(b"old")
  with (
    pytest.raises(artifacts.OutOfDiskError, match="out of disk.*x.bin.*again"),
    artifacts.atomic_write(path) as file,
  ):
    file.write(b"new")
    raise OSError(code, "no space left on device")
  assert path.read_bytes() == b"old"


def test_a_device_that_is_really_full(tmp_path):
  full = pathlib.Path("/dev/full")
  if not full.exists():
    pytest.skip("no /dev/full here")
  with (
    pytest.raises(artifacts.OutOfDiskError),
    artifacts.atomic_write(tmp_path / "x") as file,
  ):
    with open(full, "wb") as device:
      device.write(b"1")
    file.write(b"2")
  assert not list(tmp_path.iterdir())


def test_json_is_sorted_and_refuses_what_it_cannot_say(tmp_path):
  path = tmp_path / "x.json"
  artifacts.write_json(path, {"b": np.float32(0.5), "a": np.arange(2)})
  assert path.read_text() == '{\n  "a": [\n    0,\n    1\n  ],\n  "b": 0.5\n}\n'
  with pytest.raises(TypeError, match="object can't be written"):
    artifacts.write_json(path, {"x": object()})
  with pytest.raises(ValueError):
    artifacts.write_json(path, {"x": float("nan")})
  assert artifacts.read_json(path)["b"] == 0.5


def test_damaged_json_is_named(tmp_path):
  path = tmp_path / "x.json"
  path.write_text('{"a": ')
  with pytest.raises(ValueError, match="x.json is not valid JSON"):
    artifacts.read_json(path)


def test_fingerprints_depend_on_values_alone():
  assert artifacts.fingerprint({"a": 1, "b": (2,)}) == artifacts.fingerprint(
    {"b": [2], "a": 1}
  )
  x = np.arange(6.0)
  same = artifacts.sha256_arrays([x])
  assert same == artifacts.sha256_arrays([x.copy()])
  assert same != artifacts.sha256_arrays([x.reshape(2, 3)])
  assert same != artifacts.sha256_arrays([x.astype(np.float32)])
  low = [x.astype(dtype) for dtype in (ml_dtypes.bfloat16, np.float16)]
  assert len({artifacts.sha256_arrays([each]) for each in low}) == 2
  assert artifacts.sha256_arrays([np.float32(1)]) == artifacts.sha256_arrays(
    [np.ones(1, np.float32)]
  )


def test_differences_name_the_place_and_both_values():
  found = {"a": 1, "b": {"c": [1, {"d": 2}]}, "e": [1]}
  asked = {"a": 1, "b": {"c": [1, {"d": 3}]}, "e": [1, 2], "f": None}
  assert artifacts.differences(found, found) == []
  assert artifacts.differences(found, asked) == [
    "its b.c[1].d is 2, not 3",
    "its e is [1], not [1, 2]",
  ]
