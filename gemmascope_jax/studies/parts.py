"""Parts of a long measurement on disk, so that a kill loses one part at most."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Callable

import numpy as np

from gemmascope_jax import artifacts


def cached(
  path: pathlib.Path | None, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """What `make` gives, from the disk if it is there whole.

  Args:
    path: an .npz file, named by everything that its content depends on; None:
      nothing is kept.
    make: measures the part.
  """
  if path is None:
    return make()
  if path.exists() and zipfile.is_zipfile(path):
    try:
      with np.load(path, allow_pickle=False) as archive:
        return dict(archive)
    except (zipfile.BadZipFile, EOFError, ValueError, OSError):
      pass  # measured again: it is a cache
  found = make()
  with artifacts.atomic_write(path) as file:
    np.savez(file, **found)
  return found
