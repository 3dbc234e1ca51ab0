"""`gs.sae.load`: one door to every SAE on disk, recognised by content."""

from __future__ import annotations

import os
import pathlib

from jax.sharding import Mesh

from gemmascope_jax import artifacts
from gemmascope_jax.sae.sae import SAE

# A training run keeps finished SAEs, one folder a member, and a list of the
# members in the order in which they were asked for.
FINISHED = "saes"
ORDER = "members.json"


def load(
  path: str | os.PathLike,
  member: int | str | None = None,
  mesh: Mesh | None = None,
) -> SAE:
  """Loads a finished SAE, in whatever format it is (`releases.FORMATS`).

  Args:
    path: a file or folder of a release; a run's folder (the work directory or
      its `train` folder) once training has finished; or an address on the Hub,
      such as "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
      (see `releases.hub`), if there is no such path here. After
      `layer_L/width_W/`, here or there, `canonical` and `nearest_l0_N` choose.
    member: for a run of several SAEs, which: its position in the sweep or its
      folder's name; for a folder of several layers, the layer.
    mesh: devices to load it onto, latents over the "model" axis, each process
      reading only its own; None: NumPy arrays.

  Returns:
    The SAE on raw activations.

  Raises:
    FileNotFoundError: nothing there that is an SAE; says what was looked for.
    ValueError: a run of several members and no (or an unknown) `member`; a file
      that is damaged, not an SAE, or of a kind that we cannot represent.
  """
  from gemmascope_jax.releases import formats, gemma_scope, hub

  text = os.fspath(path)
  path = _chosen(pathlib.Path(text))
  if not path.exists() and (address := hub.parse(text)):
    return hub.load(address, member, mesh)
  for root in (path / FINISHED, path / "train" / FINISHED):
    if root.is_dir():
      return gemma_scope.load(_member(root, member), mesh)
  found = formats.load(path, member, mesh)
  if found is None:
    below = formats.below(path)
    if below:
      raise FileNotFoundError(
        f"no SAE in {path} itself, but below it, such as"
        f" {', '.join(map(repr, below))}: name one"
      )
    files = ", ".join(each.files for each in formats.FORMATS.values())
    raise FileNotFoundError(
      f"no SAE at {path}: expected a file or folder of a release ({files}), the"
      f" folder of a finished training run (with train/{FINISHED}/), or an"
      " address on the Hub (hf://OWNER/REPOSITORY/FOLDER)"
    )
  return found


def _chosen(path: pathlib.Path) -> pathlib.Path:
  """Of a path that ends in `canonical` or `nearest_l0_N`, which it means."""
  from gemmascope_jax.releases import choice

  asked = None if path.exists() else choice.parse(path.absolute().as_posix())
  if asked is None or not os.path.isdir(asked.place):
    return path
  found = choice.choose(asked, os.listdir(asked.place))
  if found is None:
    raise FileNotFoundError(
      f"{path}: there is no average_l0_N in {asked.place} to choose from"
    )
  return pathlib.Path(found)


def _member(root: pathlib.Path, member: int | str | None) -> pathlib.Path:
  there = sorted(f.name for f in root.iterdir() if f.is_dir())
  order = root.parent / ORDER
  names = there
  if order.exists():
    names = [listed["folder"] for listed in artifacts.read_json(order)]
  if member is None and len(names) == 1:
    member = 0
  if isinstance(member, int) and 0 <= member < len(names):
    member = names[member]
  if member in there:
    return root / member
  if member in names:
    raise FileNotFoundError(
      f"{root / member}: this member has not finished; train on with the same"
      " command"
    )
  known = ", ".join(dict.fromkeys([*names, *there]))
  if member is None:
    raise ValueError(
      f"{root.parent} holds {len(names)} SAEs: name the folder of one, as"
      f" {root / names[0]}, or give member=, a number below {len(names)} or one"
      f" of: {known}"
    )
  raise ValueError(
    f"{root.parent} holds {len(names)} SAEs, and member={member!r} names"
    f" none; expected a number below {len(names)} or one of: {known}"
  )
