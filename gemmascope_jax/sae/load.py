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
  """Loads a finished SAE.

  Args:
    path: a `params.npz`, the folder that holds one, or a run's folder (the
      work directory or its `train` folder) once training has finished.
    member: for a run of several SAEs, which: its position in the sweep or its
      folder's name.
    mesh: devices to load it onto, latents over the "model" axis, each process
      reading only its own; None: NumPy arrays.

  Returns:
    The SAE on raw activations.

  Raises:
    FileNotFoundError: nothing there that is an SAE; says what was looked for.
    ValueError: a run of several members and no (or an unknown) `member`.
  """
  from gemmascope_jax.releases import gemma_scope

  path = pathlib.Path(path)
  if path.is_file() or (path / gemma_scope.ARRAYS).exists():
    return gemma_scope.load(path, mesh)
  for root in (path / FINISHED, path / "train" / FINISHED):
    if root.is_dir():
      return gemma_scope.load(_member(root, member), mesh)
  raise FileNotFoundError(
    f"no SAE at {path}: expected a {gemma_scope.ARRAYS}, a folder with one, or"
    f" the folder of a finished training run (with train/{FINISHED}/)"
  )


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
  raise ValueError(
    f"{root.parent} holds {len(names)} SAEs, and member={member!r} names"
    f" none; expected a number below {len(names)} or one of:"
    f" {', '.join(dict.fromkeys([*names, *there]))}"
  )
