"""Measures replacements on all sequences, and keeps what is measured.

What a batch gives is kept on disk under a name made of everything that it
depends on: one file for the unspliced model and one for each replacement. So a
study that was killed goes on with the next batch, another SAE costs only its
own passes, and studies that look at the same tokens share them.

Letters: S sequences, T tokens, D width of the site.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Mapping

import jax
import numpy as np
import tqdm

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.parallel import processes
from gemmascope_jax.studies import splice
from gemmascope_jax.studies.records import (
  SiteRecord,
  SpliceRecord,
  concatenate,
)
from gemmascope_jax.studies.replacements import Replacement


def measure(
  lm,
  site: str,
  replacements: Mapping[str, Replacement],
  tokens: np.ndarray,
  policy: TokenPolicy,
  shift: np.ndarray,
  folder: str | os.PathLike,
  *,
  batch: int = 8,
  splice_special: bool = False,
  together: bool = False,
  progress: bool = True,
) -> tuple[SiteRecord, dict[str, SpliceRecord]]:
  """The records of all sequences.

  Args:
    lm: a `Gemma` with all its layers.
    site: where to splice.
    replacements: by name; each is spliced alone.
    tokens: int32 [S, T].
    policy: which positions are spliced and counted.
    shift: float64 [D], near the site's mean; see `SiteRecord`.
    folder: for what was measured.
    batch: sequences a forward pass.
    splice_special: see `splice.run_batch`.
    together: of several processes all call this, with one folder, and each
      measures its share of the batches.
    progress: show a progress bar.

  Returns:
    The site's record and one record a replacement.
  """
  folder = pathlib.Path(folder)
  shared = [
    lm.weights_hash,
    str(jax.tree.leaves(lm.params)[0].dtype),
    artifacts.code_version(),
    site,
    artifacts.sha256_arrays([tokens, shift]),
    policy,
    batch,
  ]
  keys = {
    name: artifacts.fingerprint(
      [*shared, splice_special, identity(replacement)]
    )
    for name, replacement in replacements.items()
  }
  key = artifacts.fingerprint(shared)
  parts = splice.batches(lm.params, tokens, batch, policy.pad_id)

  def measured(number: int) -> tuple[SiteRecord, dict[str, SpliceRecord]]:
    path = lambda key: folder / f"{key}_{number:05d}.npz"
    record = _read(path(key), SiteRecord)
    known = {name: _read(path(k), SpliceRecord) for name, k in keys.items()}
    missing = [name for name, each in known.items() if each is None]
    if record is None or missing:
      record, new = splice.run_batch(
        lm,
        site,
        {name: replacements[name] for name in missing},
        parts[number],
        policy,
        shift,
        splice_special=splice_special,
      )
      _write(path(key), record)
      for name, each in new.items():
        _write(path(keys[name]), each)
      known |= new
    return record, known

  rounds = [range(len(parts))]
  if together:  # first its own share, and what the others left after that
    rounds.insert(0, processes.turns(len(parts)))
  for numbers in rounds:
    found, records = [], {name: [] for name in replacements}
    for number in tqdm.tqdm(
      numbers,
      desc=f"splice {len(replacements)} at {site}",
      unit="batch",
      disable=not progress or jax.process_index() > 0,
    ):
      record, known = measured(number)
      found.append(record)
      for name, each in known.items():
        records[name].append(each)
    if together:
      processes.wait("measured")
  return (
    concatenate(found),
    {name: concatenate(each) for name, each in records.items()},
  )


def identity(replacement: Replacement) -> list:
  """What a replacement's effect depends on: its arrays, and what they mean."""
  arrays = artifacts.sha256_arrays(jax.tree.leaves(replacement))
  return [str(jax.tree.structure(replacement)), arrays]


def _write(path: pathlib.Path, record: SiteRecord | SpliceRecord) -> None:
  with artifacts.atomic_write(path) as file:
    np.savez(file, **vars(record))


def _read(path: pathlib.Path, kind: type) -> SiteRecord | SpliceRecord | None:
  """What `_write` wrote; None if there is nothing whole to read."""
  if not (path.exists() and zipfile.is_zipfile(path)):
    return None
  try:
    with np.load(path, allow_pickle=False) as archive:
      return kind(**{f.name: archive[f.name] for f in dataclasses.fields(kind)})
  except (zipfile.BadZipFile, EOFError, KeyError, ValueError, OSError):
    return None  # measured again: it is a cache
