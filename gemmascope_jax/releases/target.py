"""What may be in the folder that an SAE is saved into."""

from __future__ import annotations

import fnmatch
import pathlib

from gemmascope_jax.releases import (
  circuit_tracer,
  dictionary_learning,
  formats,
  gemma_scope,
  gemma_scope_2,
  identity,
  saelens,
)
from gemmascope_jax.sae.sae import SAE

_SETTINGS = (
  saelens.CONFIG,
  gemma_scope_2.CONFIG,
  circuit_tracer.CONFIG,
  f"*{identity.CARD}",
)


def check(sae: SAE, folder: pathlib.Path, format: str) -> None:
  """Refuses to write over, or beside, an SAE that is not of this kind.

  Files that no format writes are not minded. The format's own files, with the
  card that says that they were written here, may be written again.

  Args:
    sae: what is to be saved.
    folder: where; may be missing.
    format: as which.

  Raises:
    ValueError: the folder is a file, or holds arrays or settings of another
      format, of somebody else, or of other sites.
  """
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder} is a file: expected a folder to save into")
  if not folder.exists():
    return
  there = sorted(
    path.name
    for path in folder.iterdir()
    if (path.suffix in formats.SUFFIXES and path.name not in formats.NOT_ARRAYS)
    or _is_one(path.name, _SETTINGS)
  )
  if not there:
    return
  own = _names(sae, format)
  others = [name for name in there if not _is_one(name, own)]
  if others:
    raise ValueError(
      f"{folder} holds {', '.join(others[:5])}, which {format!r} would not write"
      " for this SAE: two SAEs in one folder can't be told apart; save into"
      " another folder, or move those files away"
    )
  if not any(_is_one(name, (f"*{identity.CARD}",)) for name in there):
    raise ValueError(
      f"{folder} holds {', '.join(there[:5])} without the {identity.CARD} that"
      " is written last: somebody else's files, or a save that was cut short;"
      " save into another folder, or move those files away"
    )


def _names(sae: SAE, format: str) -> tuple[str, ...]:
  """Patterns of what a format writes."""
  if format == "circuit_tracer":  # other layers may lie beside
    arrays = circuit_tracer.ARRAYS.format("*")
    return arrays, circuit_tracer.CONFIG, f"layer_*.{identity.CARD}"
  one = {
    "gemma_scope": (gemma_scope.ARRAYS,),
    "gemma_scope_2": (gemma_scope_2.ARRAYS, gemma_scope_2.CONFIG),
    "saelens": (saelens.ARRAYS, saelens.CONFIG),
    "dictionary_learning": (
      dictionary_learning.ARRAYS,
      dictionary_learning.CONFIG,
    ),
  }[format]
  if format == "gemma_scope_2" and sae.config.parts:
    layers = map(gemma_scope_2.LAYER.format, range(len(sae.config.parts)))
    one = (*layers, gemma_scope_2.CONFIG)
  return *one, identity.CARD


def _is_one(name: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(name, each) for each in patterns)
