"""Archives in pieces: the bytes of np.savez."""

import numpy as np
import pytest

from gemmascope_jax.releases import npz

MEMBERS = [
  npz.Member("W_enc", (5, 12), last_axis_first=True),
  npz.Member("W_dec", (12, 5)),
  npz.Member("b_dec", (5,)),
]


def arrays():
  rng = np.random.default_rng(0)
  found = {m.name: rng.normal(size=m.shape).astype("f4") for m in MEMBERS}
  return found | {"W_enc": np.asfortranarray(found["W_enc"])}


def write(path, pieces):
  with open(path, "wb") as file, npz.writing(file, MEMBERS) as append:
    for name, piece in pieces:
      append(name, piece)


def test_pieces_in_any_order_give_the_bytes_of_savez(tmp_path):
  whole = arrays()
  np.savez(tmp_path / "whole.npz", **whole)
  pieces = [("b_dec", whole["b_dec"])]
  for first, last in ((0, 7), (7, 11), (11, 12)):
    pieces.append(("W_dec", whole["W_dec"][first:last]))
    pieces.append(("W_enc", whole["W_enc"][:, first:last]))
  write(tmp_path / "pieces.npz", pieces)
  read = lambda name: (tmp_path / name).read_bytes()
  assert read("pieces.npz") == read("whole.npz")


def test_an_array_that_is_not_whole_is_refused(tmp_path):
  whole = arrays()
  pieces = [(name, value) for name, value in whole.items() if name != "W_dec"]
  with pytest.raises(
    ValueError, match=r"W_dec of shape \(12, 5\) was given -180 "
  ):
    write(tmp_path / "cut.npz", [*pieces, ("W_dec", whole["W_dec"][:3])])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_are_what_was_saved(tmp_path, save):
  whole = arrays() | {"step": np.int64(7)}
  save(tmp_path / "a.npz", **whole)
  found = npz.members(tmp_path / "a.npz")
  assert set(found) == set(whole)
  for name, value in whole.items():
    np.testing.assert_array_equal(found[name], value)
    assert isinstance(found[name], np.memmap) == (save is np.savez)
  assert found["W_enc"].flags.f_contiguous


def test_python_objects_are_refused(tmp_path):
  np.savez(tmp_path / "a.npz", W_enc=np.array([{}]))
  with pytest.raises(ValueError, match="array W_enc holds Python objects"):
    npz.members(tmp_path / "a.npz")
