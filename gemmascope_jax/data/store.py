"""The activation store: rows of activations on disk, with what they are.

A store is a folder:

    manifest.json     what it is; written last, so it is there or it is whole
    plan.json         what determines its bytes; written first
    tokens.npy        int32 [N, T], documents.npy the same, keys.npy uint64
    row_starts.npy    int64 [N + 1]: rows before each window
    res.5/00000.npy   rows [n, D]; see `shards`

Row r of every site is the same token: kept positions (the token policy's)
counted through the windows. Nothing but tokens and policy decides which.

Letters: N windows, T tokens in a window, D width of a site.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import resource
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import tqdm

from gemmascope_jax import artifacts
from gemmascope_jax.data import shards
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.shards import CorruptStoreError
from gemmascope_jax.data.store_plan import StoreMismatchError, StorePlan

MANIFEST, PLAN = "manifest.json", "plan.json"
TOKENS, DOCUMENTS = "tokens.npy", "documents.npy"
KEYS, ROW_STARTS = "keys.npy", "row_starts.npy"
SIDE_FILES = (TOKENS, DOCUMENTS, KEYS, ROW_STARTS)


class Held(Protocol):
  """Rows that were announced (`hold`); gives them in stored form."""

  def take(
    self, positions: np.ndarray, out: np.ndarray | None = None
  ) -> np.ndarray:
    """Some of the rows, each checked; safe to call from several threads.

    Args:
      positions: int64 [k], places among the rows that were announced.
      out: where to put them, [k, D] in stored form; None: a new array.

    Returns:
      [k, D] in stored form: float32, or uint16 bits of bfloat16.

    Raises:
      CorruptStoreError: a row is not the one that was written.
    """


class Store:
  """A finished store, open for reading; safe to share between threads.

  Attributes:
    root: its folder.
    manifest: the whole of manifest.json.
    plan: what determined its bytes.
    waits_for: what a reader of it waits for.
  """

  waits_for = "disk"

  def __init__(self, root: pathlib.Path, manifest: dict[str, Any]):
    self.root = root
    self.manifest = manifest
    self.plan = StorePlan.from_dict(manifest, root / MANIFEST)
    self._moments = functools.cache(self._read_moments)
    self._shard = functools.lru_cache(maxsize=_most_open())(
      functools.partial(shards.Shard, root, self.plan)
    )

  @classmethod
  def open(cls, root: str | os.PathLike) -> Store:
    """Opens a finished store.

    Raises:
      FileNotFoundError: there is none, or its harvest has not finished.
      ValueError: the manifest is not one, or of a newer format.
    """
    root = pathlib.Path(root)
    if not (root / MANIFEST).exists():
      if (root / PLAN).exists():
        raise FileNotFoundError(
          f"{root} holds an unfinished store: run the same harvest again and"
          " it goes on where it stopped"
        )
      raise FileNotFoundError(f"{root} holds no store ({MANIFEST} is missing)")
    return cls(root, artifacts.read_json(root / MANIFEST))

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
    """int32 [N, T], memory-mapped."""
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
    rows = self._require_rows(rows)
    return shards.decode(self._take(site, rows, None))

  def hold(self, site: str, rows: np.ndarray) -> Held:
    """Announces rows that are wanted soon, in any order.

    The system then reads them from disk in sequence, in the background, into
    memory that it takes back when it needs it.

    Args:
      site: name of the site.
      rows: int64 [n], row numbers in any order, usually long consecutive runs.

    Returns:
      What gives them.

    Raises:
      CorruptStoreError: a shard is missing, truncated or no such shard.
    """
    rows = self._require_rows(rows)
    self._read_ahead(site, rows)
    return _LocalHeld(self, site, rows)

  def _take(
    self, site: str, rows: np.ndarray, out: np.ndarray | None
  ) -> np.ndarray:
    """Rows in stored form, [n, D], each checked."""
    if out is None:
      dtype = shards.stored_dtype(self.plan.dtype)
      out = np.empty((len(rows), self.width(site)), dtype)
    shard, offset = np.divmod(rows, self.plan.rows_per_shard)
    if len(rows) and (shard == shard[0]).all():
      self._shard(site, int(shard[0])).take(offset, out)
      return out
    order = np.argsort(shard, kind="stable")
    ends = np.cumsum(np.bincount(shard)) if len(rows) else []
    for number, (start, end) in enumerate(itertools.pairwise([0, *ends])):
      if start < end:
        places = order[start:end]
        self._shard(site, number).take(offset[places], out, places)
    return out

  def _read_ahead(self, site: str, rows: np.ndarray) -> None:
    size = self.plan.rows_per_shard
    row_bytes = self.width(site) * shards.stored_dtype(self.plan.dtype).itemsize
    for shard, runs in _runs(rows, size):
      opened = self._shard(site, shard)  # or the error that names it
      if not hasattr(os, "posix_fadvise"):
        continue
      for path, item in ((opened.path, row_bytes), (opened.checks_path, 8)):
        with open(path, "rb") as file:
          for first, stop in runs:
            os.posix_fadvise(
              file.fileno(),
              first * item,
              (stop - first) * item,
              os.POSIX_FADV_WILLNEED,
            )

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

  def index(self, start: int, stop: int) -> np.ndarray:
    """Where rows come from: int32 [stop - start, 2], (window, position)."""
    self._require_range(start, stop)
    if start == stop:
      return np.zeros((0, 2), np.int32)
    starts = self._row_starts
    first = int(np.searchsorted(starts, start, side="right")) - 1
    last = int(np.searchsorted(starts, stop, side="left"))
    found = np.argwhere(self.policy.keep(self.tokens[first:last]))
    found = found[start - starts[first] : stop - starts[first]]
    return (found + [first, 0]).astype(np.int32)

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
    return np.array(self._side(f"{site}/moments.npy"))

  def _side(self, name: str) -> np.ndarray:
    path = self.root / name
    try:
      return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
      raise CorruptStoreError(
        f"{path}: {error}. {shards.remedy(path)}"
      ) from error

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
    expected = dict(self.manifest["files"])
    for site, entry in self.manifest["sites"].items():
      for shard, digests in enumerate(entry["shards"]):
        for path_of, key in (
          (shards.shard_path, "sha256"),
          (shards.checks_path, "checks_sha256"),
          (shards.moments_path, "moments_sha256"),
        ):
          path = path_of(self.root, site, shard)
          expected[path.relative_to(self.root).as_posix()] = digests[key]
    bad = []
    for name in tqdm.tqdm(
      expected, desc="verify", unit="file", disable=not progress
    ):
      path = self.root / name
      if not path.exists():
        bad.append(f"{path} is missing")
      elif artifacts.sha256_file(path) != expected[name]:
        bad.append(f"{path} has other bytes than the manifest records")
    if bad:
      raise CorruptStoreError(
        f"{'; '.join(bad)}. Delete what is bad and run the same harvest again:"
        " it makes what is missing anew, and only that"
      )

  def describe(self) -> str:
    """What the store is, in a few lines for people."""
    plan = self.plan
    row_bytes = shards.stored_dtype(plan.dtype).itemsize
    size = plan.rows * sum(width for _, width in plan.sites) * row_bytes
    lines = [
      f"activation store {self.root}",
      f"  fingerprint  {self.fingerprint}",
      f"  model        {plan.model} (computed in {plan.compute_dtype})",
      f"  text         {plan.windows:,} windows of {plan.window} tokens,"
      f" {len(self.keys):,} documents"
      f" ({', '.join(self.manifest['sources']) or 'source not named'})",
      f"  rows         {plan.rows:,} a site, {plan.dtype}, {plan.shards} shards"
      f" of {plan.rows_per_shard:,}; {size / 2**30:.2f} GiB",
      f"  token policy {plan.policy.to_dict()}",
      f"  code         {self.manifest['code']}",
    ]
    for site, width in plan.sites:
      mean, square = self.statistics(site)
      lines.append(
        f"  {site:<12} width {width}, C = {square**0.5:.6g}, the mean holds"
        f" {float(mean @ mean) / square:.1%} of the mean square norm"
      )
    return "\n".join(lines)


class _LocalHeld:
  """Rows that are gathered from memory maps when they are taken."""

  def __init__(self, store: Store, site: str, rows: np.ndarray):
    self._store, self._site, self._rows = store, site, rows

  def take(
    self, positions: np.ndarray, out: np.ndarray | None = None
  ) -> np.ndarray:
    """See `Held`."""
    return self._store._take(self._site, self._rows[positions], out)


def _runs(
  rows: np.ndarray, size: int
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
  """Shards of `size` rows, and the runs [first, stop) wanted within each."""
  rows = np.unique(rows)
  cuts = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] % size == 0)) + 1
  bounds = [0, *cuts.tolist(), len(rows)] if len(rows) else [0]
  found: dict[int, list[tuple[int, int]]] = {}
  for start, stop in itertools.pairwise(bounds):
    shard, first = divmod(int(rows[start]), size)
    found.setdefault(shard, []).append((first, first + stop - start))
  yield from found.items()


def _most_open() -> int:
  """Shards to keep open: each needs two of the process's descriptors."""
  limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  if limit == resource.RLIM_INFINITY:
    return 4096
  return min(max((limit - 256) // 4, 64), 4096)
