"""`.pt` files: torch's own, and what pretends to be one."""

import pickle
import zipfile

import numpy as np
import pytest

from gemmascope_jax.releases import torch_file

torch = pytest.importorskip("torch")


def _tensors():
  generator = torch.Generator().manual_seed(0)
  whole = torch.randn(6, 5, generator=generator)
  return {
    "plain": whole.clone(),
    "turned": whole.T,
    "part": whole[1:4, ::2],  # of a larger storage, with steps
    "half": whole.to(torch.bfloat16),
    "parameter": torch.nn.Parameter(whole[0]),
    "number": torch.tensor(-3, dtype=torch.int32),
    "empty": torch.zeros(0, 3),
  }


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saves_is_read(tmp_path, protocol):
  expected = _tensors()
  torch.save(expected, tmp_path / "a.pt", pickle_protocol=protocol)
  found = torch_file.read(tmp_path / "a.pt")
  assert list(found) == list(expected)
  for name, value in expected.items():
    value = value.detach().float().numpy()
    assert found[name].shape == value.shape
    np.testing.assert_array_equal(found[name][...].astype("f4"), value)
  np.testing.assert_array_equal(
    found["turned"][1:3, 2:], expected["turned"][1:3, 2:].numpy()
  )


def test_a_modules_state_is_read(tmp_path):
  module = torch.nn.Linear(3, 2)  # its state has metadata
  torch.save(module.state_dict(), tmp_path / "a.pt")
  found = torch_file.read(tmp_path / "a.pt")
  for name, value in module.state_dict().items():
    np.testing.assert_array_equal(found[name][...], value.numpy())


def test_torch_loads_what_is_written(tmp_path):
  arrays = {
    "w": np.random.default_rng(0).normal(size=(300, 2)).astype("f4"),
    "turned": np.arange(6, dtype="f4").reshape(2, 3).T,
    "k": np.asarray(-129, np.int32),
    "many": np.arange(3),
  }
  torch_file.write(tmp_path / "a.pt", arrays)
  theirs = torch.load(tmp_path / "a.pt", weights_only=True)
  ours = torch_file.read(tmp_path / "a.pt")
  assert list(theirs) == list(ours) == list(arrays)
  for name, value in arrays.items():
    assert theirs[name].numpy().dtype == value.dtype
    np.testing.assert_array_equal(theirs[name].numpy(), value)
    np.testing.assert_array_equal(ours[name][...], value)


class _Evil:
  """Unpickled, it would make a file."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return (open, (str(self.mark), "w"))


def _zip(path, **members):
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in members.items():
      archive.writestr(f"a/{name.replace('_', '.')}", content)


def test_nothing_is_executed(tmp_path):
  mark = tmp_path / "mark"
  evil = {"w": _Evil(mark)}
  torch.save(evil, tmp_path / "a.pt")
  with pytest.raises(
    ValueError, match=r"a call of '(_?io|builtins).open'.*run"
  ):
    torch_file.read(tmp_path / "a.pt")
  (tmp_path / "b.pt").write_bytes(pickle.dumps(evil))
  with pytest.raises(ValueError, match="a pickle, which could run any code"):
    torch_file.read(tmp_path / "b.pt")
  for bad in (evil, _Evil(mark), {_Evil(mark): 1}):
    _zip(tmp_path / "c.pt", data_pkl=pickle.dumps(bad, 2))
    with pytest.raises(ValueError, match="expected a dict of tensors alone"):
      torch_file.read(tmp_path / "c.pt")
  assert not mark.exists()


@pytest.mark.parametrize(
  ("value", "says"),
  [
    ({"x": torch.nn.Linear(1, 1)}, "holds the instruction NEWOBJ"),
    ([torch.ones(1)], "holds a list"),
    ({"x": 3}, "'x' that is no tensor"),
    ({1: torch.ones(1)}, "1 that is no tensor"),
    ({"model": {"x": torch.ones(1)}}, "'model' that is no tensor"),
    ({"x": torch.ones(1, dtype=torch.complex64)}, "ComplexFloatStorage"),
  ],
)
def test_other_contents_are_named(tmp_path, value, says):
  torch.save(value, tmp_path / "a.pt")
  with pytest.raises(ValueError, match=says):
    torch_file.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
  ("old", "new", "says"),
  [
    # The shape's first length, and how many numbers the storage has.
    (b"(\x8a\x01\x06\x8a", b"(\x8a\x01\x07\x8a", "reaches beyond the 18 num"),
    (b"\x8a\x01\x12", b"\x8a\x01\x13", "holds 72 bytes, expected 19 numbers"),
    (b"u.", b"u", "damaged"),
    (b"FloatStorage", b"EvilyStorage", "storage of 'torch EvilyStorage'"),
  ],
)
def test_lies_are_found(tmp_path, old, new, says):
  torch_file.write(tmp_path / "a.pt", {"w": np.ones((6, 3), "f4")})
  with zipfile.ZipFile(tmp_path / "a.pt") as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  pickled = members["archive/data.pkl"]
  assert old in pickled
  members["archive/data.pkl"] = pickled.replace(old, new, 1)
  with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  with pytest.raises(ValueError, match=says):
    torch_file.read(tmp_path / "b.pt")["w"][...]


def test_files_that_are_cut_short_are_named(tmp_path):
  torch.save(_tensors(), tmp_path / "a.pt")
  whole = (tmp_path / "a.pt").read_bytes()
  (tmp_path / "a.pt").write_bytes(whole[:-100])
  with pytest.raises(ValueError, match="a.pt is truncated or not a zip"):
    torch_file.read(tmp_path / "a.pt")
  (tmp_path / "a.pt").write_bytes(b"")
  with pytest.raises(ValueError, match="a.pt is not a zip archive"):
    torch_file.read(tmp_path / "a.pt")
