"""The activation store: rows of activations on disk, with what they are.

A store is a folder:

    manifest.json     what it is; written last, so it is there or it is whole
    plan.json         what determines its bytes; written first
    tokens.npy        int32 [N, T], documents.npy the same, keys.npy uint64
    row_starts.npy    int64 [N + 1]: rows before each window
    res.5/00000.npy   rows [n, D]; see `shards`
    res.5/moments.npy float64 [2, D]: sums of rows and of their squares

Row r of every site is the same token: kept positions (the token policy's)
counted through the windows. Nothing but tokens and policy decides which.

Letters: N windows, T tokens in a window, D width of a site.
"""

from __future__ import annotations

import functools
import hashlib
import os
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.stores import (
  shards,
  store_checking,
  store_summary,
  trace,
)
from gemmascope_jax.data.stores.files import Folder, folder
from gemmascope_jax.data.stores.shards import CorruptStoreError
from gemmascope_jax.data.stores.store_plan import (
  FILE,
  StoreMismatchError,
  StorePlan,
)
from gemmascope_jax.data.stores.store_reading import Held, LocalRows, RemoteRows
from gemmascope_jax.data.stores.trace import Origins

MANIFEST, PLAN = "manifest.json", FILE
TOKENS, DOCUMENTS = "tokens.npy", "documents.npy"
KEYS, ROW_STARTS = "keys.npy", "row_starts.npy"
MOMENTS = "moments.npy"  # in each site's folder
SIDE_FILES = (TOKENS, DOCUMENTS, KEYS, ROW_STARTS)


class Store:
  """A finished store, open for reading; safe to share between threads.

  Attributes:
    files: its folder.
    root: that folder's path or URL.
    manifest: the whole of manifest.json.
    plan: what determined its bytes.
    waits_for: what a reader of it waits for.
  """

  waits_for = "disk"

  def __init__(self, files: Folder, manifest: dict[str, Any]):
    self.files, self.root = files, files.root
    self.manifest = manifest
    self.plan = StorePlan.from_dict(manifest, files.path(MANIFEST))
    _require_whole(manifest, self.plan, files.path(MANIFEST))
    self._moments = functools.cache(self._read_moments)
    rows = LocalRows if files.is_local else RemoteRows
    self._rows = rows(files, self.plan)

  @classmethod
  def open(cls, root: str | os.PathLike) -> Store:
    """Opens a finished store.

    Args:
      root: its folder: a path, or a URL that fsspec knows.

    Raises:
      FileNotFoundError: there is none, or its harvest has not finished.
      ValueError: the manifest is not one, or of another format.
    """
    files = folder(root)
    try:
      manifest = files.read_json(MANIFEST)
    except FileNotFoundError:
      if files.exists(PLAN):
        raise FileNotFoundError(
          f"{root} holds an unfinished store: run the same harvest again and"
          " it goes on where it stopped"
        ) from None
      raise FileNotFoundError(
        f"{root} holds no store ({MANIFEST} is missing)"
      ) from None
    except ValueError as error:
      path = files.path(MANIFEST)
      raise CorruptStoreError(f"{error}. {shards.remedy(path)}") from error
    return cls(files, manifest)

  @property
  def rows(self) -> int:
    """Rows of each site."""
    return self.plan.rows

  @property
  def sites(self) -> tuple[str, ...]:
    """Names of the sites."""
    return tuple(name for name, _ in self.plan.sites)

  @property
  def policy(self) -> TokenPolicy:
    """Which positions became rows."""
    return self.plan.policy

  @property
  def fingerprint(self) -> str:
    """Of everything that determined the rows."""
    return self.plan.fingerprint

  def width(self, site: str) -> int:
    """D of a site."""
    self._require_site(site)
    return dict(self.plan.sites)[site]

  @functools.cached_property
  def tokens(self) -> np.ndarray:
    """int32 [N, T], memory-mapped (as a whole in memory from elsewhere)."""
    return self._side(TOKENS)

  @functools.cached_property
  def documents(self) -> np.ndarray:
    """int32 [N, T]: as `packing.Windows.documents`, memory-mapped."""
    return self._side(DOCUMENTS)

  @functools.cached_property
  def keys(self) -> np.ndarray:
    """uint64: as `packing.Windows.keys`, memory-mapped."""
    return self._side(KEYS)

  @functools.cached_property
  def _row_starts(self) -> np.ndarray:
    return self._side(ROW_STARTS)

  def read(self, site: str, start: int, stop: int) -> np.ndarray:
    """Rows start..stop-1 of a site, float32 [stop - start, D]."""
    self._require_range(start, stop)
    return self.gather(site, np.arange(start, stop))

  def gather(self, site: str, rows: np.ndarray) -> np.ndarray:
    """Any rows of a site, in the order asked for, each checked.

    Args:
      site: name of the site.
      rows: int64 [n], each from 0 to `self.rows` - 1.

    Returns:
      float32 [n, D].

    Raises:
      CorruptStoreError: a shard is missing or damaged; names it and the row.
    """
    self._require_site(site)
    return shards.decode(self._rows.take(site, self._require_rows(rows)))

  def hold(self, site: str, rows: np.ndarray) -> Held:
    """Announces rows that are wanted soon, in any order.

    On this machine, the system then reads them from disk in sequence, in the
    background, into memory that it takes back when it needs it. From elsewhere
    they are fetched now, into memory: n x D x the item size.

    Args:
      site: name of the site.
      rows: int64 [n], row numbers in any order, usually long consecutive runs.

    Returns:
      What gives them.

    Raises:
      CorruptStoreError: a shard is missing, truncated or no such shard.
    """
    self._require_site(site)
    return self._rows.hold(site, self._require_rows(rows))

  def _require_rows(self, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < self.rows:
      raise ValueError(
        f"rows {rows.min()}..{rows.max()}: {self.root} has rows"
        f" 0..{self.rows - 1}"
      )
    return rows

  def _require_range(self, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= self.rows:
      raise ValueError(
        f"rows {start}..{stop - 1}: {self.root} has rows 0..{self.rows - 1}"
      )

  def trace(self, rows: np.ndarray) -> Origins:
    """Where rows come from: their documents, windows and positions.

    Args:
      rows: int64 [n], row numbers in any order, such as a stream's
        `row_numbers(step)`.
    """
    return trace.trace(
      self._require_rows(rows),
      self.policy,
      self._row_starts,
      self.tokens,
      self.documents,
      self.keys,
    )

  def index(self, start: int, stop: int) -> np.ndarray:
    """Rows start..stop-1: int32 [stop - start, 2], (window, position)."""
    self._require_range(start, stop)
    found = self.trace(np.arange(start, stop))
    return np.stack([found.windows, found.positions], axis=1)

  def statistics(self, site: str) -> tuple[np.ndarray, float]:
    """Mean and mean square norm of a site's rows, as they are stored.

    Returns:
      mean, float64 [D], and E||x||^2; its square root is the scalar C that the
      paper divides activations by (3.1, appendix A).
    """
    sums, squares = self._moments(site)
    return sums / self.rows, float(squares.sum() / self.rows)

  def total_variance(self, site: str) -> float:
    """E||x - mean||^2 of a site's rows: FVU's denominator (paper, 5)."""
    mean, square = self.statistics(site)
    return square - float(mean @ mean)

  def _read_moments(self, site: str) -> np.ndarray:
    self._require_site(site)
    return np.array(self._side(f"{site}/{MOMENTS}"))

  def _side(self, name: str) -> np.ndarray:
    """A file beside the rows, compared with the manifest when first used."""
    path = self.files.path(name)
    try:
      array = self.files.array(name)
      digest = (
        self.files.sha256(name)
        if self.files.is_local
        else hashlib.sha256(artifacts.npy_bytes(array)).hexdigest()
      )
    except (OSError, ValueError, EOFError) as error:
      raise CorruptStoreError(
        f"{path}: {error}. {shards.remedy(path)}"
      ) from error
    if digest != self.manifest["files"][name]:
      raise CorruptStoreError(
        f"{path} has other bytes than the manifest records."
        f" {shards.remedy(path)}"
      )
    return array

  def _require_site(self, site: str) -> None:
    if site not in self.sites:
      raise ValueError(
        f"site {site}: {self.root} holds {', '.join(self.sites)}; harvest it"
        " into another store"
      )

  def require_model(self, lm: Any) -> None:
    """Raises `StoreMismatchError` unless the rows are of this model.

    Args:
      lm: with `weights_hash` and `label`.
    """
    if lm.weights_hash != self.plan.weights_hash:
      raise StoreMismatchError(
        f"{self.root} was harvested from {self.plan.model} (weights"
        f" {self.plan.weights_hash[:12]}), not from {lm.label} (weights"
        f" {lm.weights_hash[:12]}): harvest that model into another folder"
      )

  def verify(self, progress: bool = False) -> None:
    """Reads every file and compares its SHA-256 with the manifest's.

    Raises:
      CorruptStoreError: names each file that is missing or altered.
    """
    damage = store_checking.find_damage(self, progress)
    if damage:
      text = "; ".join(f"{self.files.path(d.name)} {d.what}" for d in damage)
      raise CorruptStoreError(
        f"{text}. Delete what is bad and run the same harvest again: it makes"
        " what is missing anew, and only that"
      )

  def describe(self) -> str:
    """What the store is, for people."""
    return store_summary.table(store_summary.summary(self))


def _require_whole(
  manifest: dict[str, Any], plan: StorePlan, path: str
) -> None:
  """Refuses a manifest that was altered, or lacks something."""
  names = [*SIDE_FILES, *(f"{site}/{MOMENTS}" for site, _ in plan.sites)]
  try:
    good = (
      manifest["fingerprint"] == plan.fingerprint
      and set(names) <= set(manifest["files"])
      and all(
        len(manifest["sites"][site]["shards"]) == plan.shards
        for site, _ in plan.sites
      )
      and {"sources", "documents", "config", "code", "made_with"}
      <= set(manifest)
    )
  except (KeyError, TypeError):
    good = False
  if not good:
    raise CorruptStoreError(
      f"{path} is damaged: what it says of the store does not fit together"
      " (its fingerprint is computed from it). Delete it and run the same"
      " harvest again, which keeps the shards"
    )
