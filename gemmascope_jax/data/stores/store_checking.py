"""Comparing every file of a store with its manifest, and setting bad ones aside.

Reads never give a wrong row (see `shards`); this finds all damage at once, and
also what no read touches.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import tqdm

from gemmascope_jax.data.stores import shards
from gemmascope_jax.data.stores.files import Folder
from gemmascope_jax.data.stores.store_plan import FILE, StorePlan

if TYPE_CHECKING:
  from gemmascope_jax.data.stores.store import Store

_THREADS = 4  # hashing keeps one core busy with about 1 GiB/s
_REQUESTS = 16  # at a time, from elsewhere
ASIDE = ".bad"


class Damage(NamedTuple):
  """A bad file of a store: its name in the store's folder, and what it is."""

  name: str
  what: str


def find_damage(store: Store, progress: bool = False) -> list[Damage]:
  """Reads every file of a store; gives those that are missing or altered.

  Args:
    store: a finished store.
    progress: show a progress bar: bytes, rate, time left.
  """
  digests = dict(store.manifest["files"])
  sidecars = {}
  for site, entry in store.manifest["sites"].items():
    for shard, sidecar in enumerate(entry["shards"]):
      digests[shards.rows_name(site, shard)] = sidecar["sha256"]
      digests[shards.checks_name(site, shard)] = sidecar["checks_sha256"]
      digests[shards.moments_name(site, shard)] = sidecar["moments_sha256"]
      sidecars[shards.sidecar_name(site, shard)] = sidecar
  sizes = {}
  for below in ("", *store.sites):
    sizes.update(store.files.sizes(below))
  damage = [
    Damage(name, "is missing")
    for name in (*digests, *sidecars)
    if name not in sizes
  ]
  for name, sidecar in sidecars.items():
    if name in sizes and not _says(store.files, name, sidecar):
      damage.append(Damage(name, "says something else than the manifest"))
  if not _is_plan_of(store):
    damage.append(Damage(FILE, "says something else than the manifest"))
  names = [name for name in digests if name in sizes]
  threads = min(_THREADS, os.cpu_count() or 1)
  if not store.files.is_local:
    threads = _REQUESTS
  with (
    tqdm.tqdm(
      total=sum(sizes[name] for name in names),
      desc="verify",
      unit="B",
      unit_scale=True,
      unit_divisor=1024,
      disable=not progress,
    ) as bar,
    concurrent.futures.ThreadPoolExecutor(threads) as pool,
  ):
    hashes = pool.map(lambda name: _sha256(store.files, name, bar), names)
    for name, digest in zip(names, hashes, strict=True):
      if digest != digests[name]:
        damage.append(Damage(name, "has other bytes than the manifest records"))
  return sorted(damage)


def set_aside(store: Store, damage: Iterable[Damage]) -> list[str]:
  """Renames bad files to *.bad, so that the same harvest makes them again.

  Returns:
    Their new names; files that are missing have none.
  """
  renamed = []
  for name, _ in damage:
    if store.files.exists(name):
      store.files.rename(name, name + ASIDE)
      renamed.append(name + ASIDE)
  return renamed


def _is_plan_of(store: Store) -> bool:
  try:
    found = StorePlan.from_dict(store.files.read_json(FILE), FILE)
  except (OSError, ValueError):
    return False
  return found.fingerprint == store.fingerprint


def _says(files: Folder, name: str, sidecar: dict) -> bool:
  try:
    return files.read_json(name) == sidecar
  except (OSError, ValueError):
    return False


def _sha256(files: Folder, name: str, bar: tqdm.tqdm) -> str | None:
  """Of a file; None if it can't be read."""
  try:
    return files.sha256(name, bar.update)
  except OSError:
    return None
