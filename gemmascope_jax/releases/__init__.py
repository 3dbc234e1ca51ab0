"""SAEs in the formats that people exchange."""

from __future__ import annotations

import os
import pathlib

from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae.sae import SAE

FORMATS = ("gemma_scope",)


def save(
  sae: SAE, path: str | os.PathLike, format: str = "gemma_scope"
) -> pathlib.Path:
  """Writes an SAE into the folder `path`.

  Args:
    sae: a finished SAE.
    path: folder; for the released layout below a root, join it with
      `gemma_scope.folder_name(layer, width, measured_l0)`.
    format: one of `FORMATS`.

  Returns:
    The folder written.

  Raises:
    ValueError: an unknown format.
  """
  if format not in FORMATS:
    raise ValueError(
      f"unknown release format {format!r}; known: {', '.join(FORMATS)}"
    )
  return gemma_scope.save(sae, path)
