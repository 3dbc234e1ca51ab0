"""`gs.sae.load`: one door to every SAE on disk, recognised by content."""

from __future__ import annotations

import os
import pathlib

from gemmascope_jax.sae.sae import SAE

MEMBERS = "saes"


def load(path: str | os.PathLike, member: int | str | None = None) -> SAE:
  """Loads a finished SAE.

  Args:
    path: a `params.npz`, the folder that holds one, or a run's folder (the
      work directory or its `train` folder) once training has finished.
    member: for a run of several SAEs, which: its position in the sweep or its
      folder's name.

  Returns:
    The SAE on raw activations.

  Raises:
    FileNotFoundError: nothing there that is an SAE; says what was looked for.
    ValueError: a run of several members and no (or an unknown) `member`.
  """
  from gemmascope_jax.releases import gemma_scope

  path = pathlib.Path(path)
  if path.is_file() or (path / gemma_scope.ARRAYS).exists():
    return gemma_scope.load(path)
  for root in (path / MEMBERS, path / "train" / MEMBERS):
    if root.is_dir():
      return gemma_scope.load(_member(root, member))
  raise FileNotFoundError(
    f"no SAE at {path}: expected a {gemma_scope.ARRAYS}, a folder with one, or"
    f" the folder of a finished training run (with train/{MEMBERS}/)"
  )


def _member(root: pathlib.Path, member: int | str | None) -> pathlib.Path:
  folders = sorted(f for f in root.iterdir() if f.is_dir())
  names = [folder.name for folder in folders]
  if member is None and len(folders) == 1:
    return folders[0]
  if isinstance(member, int) and 0 <= member < len(folders):
    return folders[member]
  if member in names:
    return root / member
  raise ValueError(
    f"{root.parent} holds {len(folders)} SAEs, and member={member!r} names"
    f" none; expected a number below {len(folders)} or one of:"
    f" {', '.join(names)}"
  )
