"""SAEs in the formats that people exchange.

`gs.sae.load` reads them all. Here are what writes them (`save`), the names of
Gemma Scope's releases (`names`, `catalogue`), and conversions between what
different tools take for the same site (`gain`, `gemma_scope.scaled_embedding`).
"""

from __future__ import annotations

import os
import pathlib

from gemmascope_jax.releases import (
  catalogue,
  clt,
  formats,
  gain,
  gemma_scope,
  hub,
  names,
  target,
)
from gemmascope_jax.sae.sae import SAE

FORMATS = tuple(formats.FORMATS)


def save(
  sae: SAE, path: str | os.PathLike, format: str = "gemma_scope"
) -> pathlib.Path:
  """Writes an SAE into the folder `path`.

  Args:
    sae: a finished SAE.
    path: folder; for the released layout below a root, join it with
      `gemma_scope.folder_name(layer, width, measured_l0)`. What the same format
      wrote there before is replaced.
    format: one of `FORMATS`.

  Returns:
    The folder written.

  Raises:
    ValueError: an unknown format, or one that cannot hold such an SAE; a folder
      with files of another format or of somebody else, see `target.check`.
  """
  found = _format(format)
  found.check(sae)
  target.check(sae, pathlib.Path(path), format)
  return found.save(sae, path)


def check(sae: SAE, format: str) -> None:
  """Raises `ValueError` if a format cannot hold an SAE; writes nothing."""
  _format(format).check(sae)


def as_read(sae: SAE, format: str) -> SAE:
  """The SAE that loading gives for what `save` writes of one.

  It is the same but for a TopK in dictionary_learning's format, whose b_enc is
  rounded once more.
  """
  return _format(format).as_read(sae)


def _format(name: str) -> formats.Format:
  if name not in FORMATS:
    raise ValueError(
      f"unknown release format {name!r}; known: {', '.join(FORMATS)}"
    )
  return formats.FORMATS[name]
