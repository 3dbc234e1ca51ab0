"""A store's own files, around its shards: what is there, what is missing.

The order in which they appear is what makes a killed harvest resumable: the
plan first, then tokens, shards, sums, and the manifest last.

Letters: N windows.
"""

from __future__ import annotations

import errno
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data import shard_writing, shards, store
from gemmascope_jax.data.forward import row_starts
from gemmascope_jax.data.packing import Windows
from gemmascope_jax.data.store_plan import StorePlan

LOCK = "writer.lock"
_LEFTOVERS = "*.incomplete"  # what a killed `artifacts.atomic_write` leaves
_MOMENTS = "moments.npy"


def require_same_plan(root: pathlib.Path, asked: StorePlan) -> None:
  """Checks that a folder is the asked store, finished or not, or free for it.

  Raises:
    StoreMismatchError: it is another store.
    ValueError: it holds something that is no store.
  """
  for name in (store.MANIFEST, store.PLAN):
    if (root / name).exists():
      found = StorePlan.from_dict(artifacts.read_json(root / name), root / name)
      asked.require_same(found, root)
      return
  if root.is_dir():
    foreign = [path.name for path in root.iterdir() if path.name != LOCK]
    foreign = [name for name in foreign if not name.endswith(_LEFTOVERS[1:])]
    if foreign:
      raise ValueError(
        f"{root} is not a store but holds {', '.join(sorted(foreign)[:3])}:"
        " harvest into an empty or a new folder"
      )


def is_whole(root: pathlib.Path, asked: StorePlan) -> bool:
  """Whether nothing is missing and nothing is left over (stats files only)."""
  files = (store.MANIFEST, store.PLAN, *store.SIDE_FILES)
  files = (*files, *(f"{site}/{_MOMENTS}" for site, _ in asked.sites))
  return (
    all((root / name).exists() for name in files)
    and not (root / LOCK).exists()
    and not any(root.rglob(_LEFTOVERS))
    and all(
      shards.is_finished(root, site, shard)
      for site, _ in asked.sites
      for shard in range(asked.shards)
    )
  )


def remove_leftovers(root: pathlib.Path) -> None:
  """Removes what a killed writer left half written."""
  for leftover in root.rglob(_LEFTOVERS):
    leftover.unlink()


def write_first(root: pathlib.Path, asked: StorePlan, used: Windows) -> None:
  """Plan, tokens and what belongs to them, where they are missing."""
  if not (root / store.PLAN).exists():
    artifacts.write_json(root / store.PLAN, asked.to_dict())
  for name, array in (
    (store.TOKENS, used.tokens),
    (store.DOCUMENTS, used.documents),
    (store.KEYS, used.keys),
    (store.ROW_STARTS, row_starts(asked.policy, used.tokens)),
  ):
    if not (root / name).exists():
      artifacts.write_npy(root / name, array)


def require_space(
  root: pathlib.Path,
  asked: StorePlan,
  writers: dict[str, shard_writing.SiteWriter],
) -> None:
  """Raises `OutOfDiskError` if the missing shards won't fit on the disk."""
  item = shards.stored_dtype(asked.dtype).itemsize
  need = sum(
    asked.shard_rows(shard) * width * item
    for site, width in asked.sites
    for shard in writers[site].missing
  )
  free = shutil.disk_usage(root).free
  if need > free:
    raise artifacts.OutOfDiskError(
      errno.ENOSPC,
      f"{root} needs {need / 2**30:.2f} GiB more, but its disk has"
      f" {free / 2**30:.2f} GiB free: free space, ask for fewer rows or sites,"
      " or store bfloat16",
    )


def write_last(
  root: pathlib.Path,
  asked: StorePlan,
  used: Windows,
  config: dict[str, Any] | None,
) -> None:
  """Sums over all shards and the manifest, where they are missing."""
  entries = {}
  for site, width in asked.sites:
    path = root / site / _MOMENTS
    if not path.exists():
      total = np.zeros((2, width), np.float64)
      for shard in range(asked.shards):
        total += np.load(shards.moments_path(root, site, shard))
      artifacts.write_npy(path, total)
    total = np.load(path)
    mean = total[0] / asked.rows
    square = float(total[1].sum() / asked.rows)
    entries[site] = {
      "width": width,
      "mean_square_norm": square,
      "total_variance": square - float(mean @ mean),
      "shards": [
        shards.read_sidecar(root, site, shard) for shard in range(asked.shards)
      ],
    }
  if (root / store.MANIFEST).exists():
    return
  names = [*store.SIDE_FILES, *(f"{site}/{_MOMENTS}" for site in entries)]
  manifest = {
    **asked.to_dict(),
    "fingerprint": asked.fingerprint,
    "sites": entries,
    "sources": list(used.sources),
    "files": {name: artifacts.sha256_file(root / name) for name in names},
    "config": config or {},
    "code": artifacts.code_version(),
    "made_with": {
      "jax": jax.__version__,
      "device": jax.devices()[0].device_kind,
    },
  }
  artifacts.write_json(root / store.MANIFEST, manifest)
