"""A store's own files, around its shards: what is there, what is missing.

The order in which they appear is what makes a killed harvest resumable: the
plan first, then tokens, shards, sums, and the manifest last.

Several processes may fill one store, each a contiguous slice of the shards
(its part). Each holds a lock of its part while it writes shards; the main lock
is for what belongs to all of them, and for a process that does everything.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.lock import LockedError
from gemmascope_jax.data.stores import shards, store
from gemmascope_jax.data.stores.files import (
  Folder,
  concurrently,
  folder,
  free_bytes,
)
from gemmascope_jax.data.stores.forward import row_starts
from gemmascope_jax.data.stores.shards import CorruptStoreError
from gemmascope_jax.data.stores.store_plan import StorePlan
from gemmascope_jax.data.tokens.packing import Windows

LOCK = "writer.lock"
_PART_LOCKS = "writer.*-of-*.lock"
_COMPARED = 4096  # windows at once
_SUMMED = 256  # shards at once
_LEFTOVERS = "*.incomplete"  # what a killed `artifacts.atomic_write` leaves


def part_lock(part: int, parts: int) -> str:
  """Name of the lock of one of several parts."""
  return f"writer.{part}-of-{parts}.lock"


def part_shards(asked: StorePlan, part: int, parts: int) -> range:
  """The shards that one of several processes makes."""
  return range(asked.shards * part // parts, asked.shards * (part + 1) // parts)


def require_same_plan(root: str | os.PathLike | Folder, asked: StorePlan):
  """Checks that a folder is the asked store, finished or not, or free for it.

  Raises:
    StoreMismatchError: it is another store.
    ValueError: it holds something that is no store.
  """
  files = folder(root)
  # In this order: another process may write its plan, the first of its files,
  # between the two looks.
  entries = files.entries()
  found = files.sizes()
  # The plan decides; a manifest that says otherwise is damaged, and `Store.open`
  # says so.
  for name in (store.PLAN, store.MANIFEST):
    if name in found:
      path = files.path(name)
      try:
        found = files.read_json(name)
      except ValueError as error:
        raise CorruptStoreError(
          f"{error}. Delete {path} and run the same harvest again, which keeps"
          " the shards"
        ) from error
      asked.require_same(StorePlan.from_dict(found, path), files.root)
      return
  own = (LOCK, _PART_LOCKS, _LEFTOVERS)
  foreign = [
    name
    for name in entries
    if not any(fnmatch.fnmatch(name, pattern) for pattern in own)
  ]
  if foreign:
    raise ValueError(
      f"{files.root} is not a store but holds"
      f" {', '.join(sorted(foreign)[:3])}: harvest into an empty or a new"
      " folder"
    )


def is_whole(root: str | os.PathLike | Folder, asked: StorePlan) -> bool:
  """Whether nothing is missing and nothing is left over (lists files only)."""
  files = folder(root)
  found = _all_names(files, asked)
  needed = (store.MANIFEST, store.PLAN, *store.SIDE_FILES)
  needed = (*needed, *(f"{site}/{store.MOMENTS}" for site, _ in asked.sites))
  return (
    found.issuperset(needed)
    and LOCK not in found
    and not fnmatch.filter(found, _PART_LOCKS)
    and not fnmatch.filter(found, _LEFTOVERS)
    and not unfinished(files, asked)
  )


def unfinished(
  files: Folder, asked: StorePlan, which: Collection[int] | None = None
) -> dict[str, list[int]]:
  """The shards that are missing, of each site that lacks any.

  Args:
    files: the store's folder.
    asked: its plan.
    which: the shards to look at; None: all.
  """
  which = range(asked.shards) if which is None else which
  missing = {}
  for site, _ in asked.sites:
    there = shards.finished(files, asked, site)
    lacks = [shard for shard in which if shard not in there]
    if lacks:
      missing[site] = lacks
  return missing


def remove_leftovers(
  files: Folder, asked: StorePlan, of: Callable[[int | None], bool]
) -> None:
  """Removes what a killed writer left half written.

  Args:
    files: the store's folder.
    asked: its plan.
    of: which leftovers, by their shard's number; None is for what is not of a
      shard.
  """
  for name in fnmatch.filter(_all_names(files, asked), _LEFTOVERS):
    if of(shards.shard_number(name)):
      files.remove(name)


def require_same_parts(files: Folder, parts: int) -> None:
  """Raises `LockedError` if others make the store in another number of parts.

  Args:
    files: the store's folder.
    parts: this process's number of parts.
  """
  for name in fnmatch.filter(files.sizes(), _PART_LOCKS):
    if not name.endswith(f"-of-{parts}.lock"):
      with files.lock(name):  # its holder is gone, or this raises
        pass


@contextlib.contextmanager
def patient_lock(files: Folder, name: str, patience_s: float) -> Iterator[None]:
  """A lock that others hold for a short time; waits for it.

  Raises:
    LockedError: it was not free within `patience_s` seconds.
  """
  start, told = time.monotonic(), False
  with contextlib.ExitStack() as stack:
    while True:
      try:
        stack.enter_context(files.lock(name))
        break
      except LockedError as error:
        waited = time.monotonic() - start
        if waited > patience_s:
          raise
        if waited > 5 and not told:
          print(f"harvest waits: {error}", file=sys.stderr)
          told = True
        time.sleep(0.1)
    yield


def write_first(files: Folder, asked: StorePlan, used: Windows) -> None:
  """Plan, tokens and what belongs to them, where missing or altered."""
  found = files.sizes()
  if store.PLAN not in found:
    files.write_json(store.PLAN, asked.to_dict())
  for name, array in (
    (store.TOKENS, lambda: used.tokens),
    (store.DOCUMENTS, lambda: used.documents),
    (store.KEYS, lambda: used.keys),
    (store.ROW_STARTS, lambda: row_starts(asked.policy, used.tokens)),
  ):
    if name not in found or not _holds(files, name, array()):
      files.write_npy(name, array())


def require_space(
  files: Folder, asked: StorePlan, missing: dict[str, list[int]]
) -> None:
  """Raises `OutOfDiskError` if the missing shards won't fit on the disk.

  Elsewhere, the disk that counts is the one from which shards are sent away:
  for each site it holds the one being written and the one being sent.
  """
  need = sum(
    sum(
      sorted(shards.rows_form(asked, site, shard).bytes for shard in lacking)[
        -(len(lacking) if files.is_local else 2) :
      ]
    )
    for site, lacking in missing.items()
  )
  free = free_bytes(files)
  if need > free:
    raise artifacts.OutOfDiskError(
      errno.ENOSPC,
      f"{files.root} needs {need / 2**30:.2f} GiB more, but its disk has"
      f" {free / 2**30:.2f} GiB free: free space, ask for fewer rows or sites,"
      " or store bfloat16"
      + ("" if files.is_local else " (TMPDIR says which disk shards wait on)"),
    )


def write_last(
  files: Folder,
  asked: StorePlan,
  used: Windows,
  config: dict[str, Any] | None,
) -> None:
  """Sums over all shards and the manifest, where missing or altered."""
  entries = {}
  for site, width in asked.sites:
    name = f"{site}/{store.MOMENTS}"
    sidecars: list[dict[str, Any]] = []
    total = np.zeros((2, width), np.float64)
    for first in range(0, asked.shards, _SUMMED):
      some = range(first, min(first + _SUMMED, asked.shards))
      for sidecar, sums in concurrently(
        lambda shard, site=site: _summary(files, site, shard), some
      ):
        sidecars.append(sidecar)
        total += sums
    if not files.exists(name) or not _holds(files, name, total):
      files.write_npy(name, total)
    mean = total[0] / asked.rows
    square = float(total[1].sum() / asked.rows)
    entries[site] = {
      "width": width,
      "mean_square_norm": square,
      "total_variance": square - float(mean @ mean),
      "shards": sidecars,
    }
  names = [*store.SIDE_FILES, *(f"{site}/{store.MOMENTS}" for site in entries)]
  facts = {
    **asked.to_dict(),
    "fingerprint": asked.fingerprint,
    "sites": entries,
    "sources": list(used.sources),
    "documents": len(used.keys),
    "files": {name: files.sha256(name) for name in names},
  }
  facts = json.loads(artifacts.canonical_json(facts))
  if files.exists(store.MANIFEST):
    before = files.read_json(store.MANIFEST)
    # Labels, config and code are those of who made it first.
    same = set(facts) - {"model", "sources"}
    if all(before.get(key) == facts[key] for key in same):
      return
  files.write_json(
    store.MANIFEST,
    facts
    | {
      "config": config or {},
      "code": artifacts.code_version(),
      "made_with": {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
      },
    },
  )


def _summary(
  files: Folder, site: str, shard: int
) -> tuple[dict[str, Any], np.ndarray]:
  """A shard's sidecar and its sums, if they are what was written."""
  sidecar = _sidecar(files, site, shard)
  name = shards.moments_name(site, shard)
  raw = files.read(name)
  if hashlib.sha256(raw).hexdigest() != sidecar["moments_sha256"]:
    path = files.path(name)
    raise CorruptStoreError(
      f"{path} has other bytes than were written there. {shards.remedy(path)}"
    )
  return sidecar, np.load(io.BytesIO(raw))


def _sidecar(files: Folder, site: str, shard: int) -> dict[str, Any]:
  name = shards.sidecar_name(site, shard)
  path = files.path(name)
  try:
    found = files.read_json(name)
    return {key: found[key] for key in shards.SIDECAR}
  except (ValueError, KeyError, TypeError) as error:
    raise CorruptStoreError(
      f"{path} does not say what its shard is ({error}). {shards.remedy(path)}"
    ) from error


def _holds(files: Folder, name: str, array: np.ndarray) -> bool:
  """Whether a file holds just this array; compared a part at a time."""
  try:
    found = files.array(name)
  except (OSError, ValueError, EOFError):
    return False
  return (
    found.shape == array.shape
    and found.dtype == array.dtype
    and all(
      np.array_equal(found[i : i + _COMPARED], array[i : i + _COMPARED])
      for i in range(0, len(array), _COMPARED)
    )
  )


def _all_names(files: Folder, asked: StorePlan) -> set[str]:
  """Names of all files of a store, whatever they are."""
  below = ("", *(site for site, _ in asked.sites))
  return {name for sub in below for name in files.sizes(sub)}
