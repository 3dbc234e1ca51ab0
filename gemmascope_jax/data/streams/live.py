"""Rows straight from the model, with nothing on disk ("online" training).

The paper prefers stored activations because sparsity can be swept and SAEs
retrained at will; it names generating them on the fly as the better choice when
disk is short or all settings are known beforehand (3.3.2). Rows, their order
and so the batches are those of a store of the same text; each epoch costs the
language model one more pass.

Letters: N windows, T tokens in a window, D width of a site.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import itertools
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.stores import harvest, shards, trace
from gemmascope_jax.data.stores.forward import Forward
from gemmascope_jax.data.stores.store_plan import StoreMismatchError
from gemmascope_jax.data.stores.trace import Origins
from gemmascope_jax.data.tokens.packing import Windows

STATISTICS_ROWS = 1 << 16
AT_ONCE = 2  # batches: one is picked from while the next is computed
_PASSES = 2  # whose rows wait to be asked for, as a stream's buckets


class LiveRows:
  """Rows of a live model by number, as `store.Store` gives them.

  Memory: in `hold` the rows asked for, of all sites; a stream holds two buckets
  at a time, so choose `bucket_rows` for 2 x bucket_rows x D x item size to fit,
  D being the sum over sites.

  Attributes:
    rows: rows of each site.
    plan: what a store of them would be.
    policy: which positions they are.
    fingerprint: of the plan and of what the statistics are measured on.
    tokens, documents, keys: of the windows; see `packing.Windows`.
  """

  waits_for = "language model"

  def __init__(
    self,
    lm: Any,
    windows: Windows,
    sites: Iterable[str],
    policy: TokenPolicy,
    folder: str | os.PathLike,
    *,
    rows: int | None = None,
    batch: int = 8,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    statistics_rows: int = STATISTICS_ROWS,
  ):
    """Counts rows; computes none.

    Args:
      lm: see `harvest.harvest`.
      windows: tokens and their documents.
      sites: names of the sites.
      policy: which positions are rows.
      folder: where the measured statistics are kept, so that a run that is
        started again scales its rows exactly as before.
      rows: in an epoch; None: all that the windows have.
      batch: windows in one forward pass.
      dtype: "float32" or "bfloat16", to which rows are rounded.
      mesh: devices of the model.
      statistics_rows: rows, spread over the text, on which the mean and the
        scalar C are measured; a store knows them of all its rows.

    Raises:
      ValueError: see `harvest.plan`.
    """
    if statistics_rows < 1:
      raise ValueError(
        f"statistics_rows {statistics_rows}: expected at least 1"
      )
    self.plan = harvest.plan(
      lm, windows, sites, policy, rows=rows, batch=batch, dtype=dtype
    )
    used = windows.take(self.plan.windows)
    self.tokens, self.documents, self.keys = (
      used.tokens,
      used.documents,
      used.keys,
    )
    self.rows, self.policy = self.plan.rows, policy
    self.fingerprint = artifacts.fingerprint(
      ["live", self.plan.fingerprint, statistics_rows]
    )
    self.root = f"the live model {lm.label}"
    self._folder = pathlib.Path(folder)
    self._statistics_rows = statistics_rows
    self._forward = Forward(lm, self.plan, self.tokens, mesh)
    self._lock = threading.Lock()
    self._passes: collections.OrderedDict[bytes, _Pass] = (
      collections.OrderedDict()
    )
    self._passes_lock = threading.Lock()

  @property
  def sites(self) -> tuple[str, ...]:
    """Names of the sites."""
    return tuple(name for name, _ in self.plan.sites)

  def width(self, site: str) -> int:
    """D of a site."""
    if site not in self.sites:
      raise ValueError(
        f"site {site}: {self.root} was asked for {', '.join(self.sites)}"
      )
    return dict(self.plan.sites)[site]

  def statistics(self, site: str) -> tuple[np.ndarray, float]:
    """Mean, float64 [D], and E||x||^2, measured on `statistics_rows` rows."""
    width = self.width(site)
    path = self._folder / f"statistics_{self.fingerprint}_{site}.npy"
    with self._lock:
      if not path.exists():
        artifacts.write_npy(path, self._measure(site))
    found = np.load(path)
    if found.shape != (width + 1,):
      raise ValueError(
        f"{path} holds {list(found.shape)} numbers, expected {width + 1}:"
        " delete it and start again"
      )
    return found[:width], float(found[width])

  def _measure(self, site: str) -> np.ndarray:
    """Sums over evenly spaced batches of windows; the mean, then E||x||^2."""
    firsts = np.arange(0, self.plan.windows, self.plan.batch)
    per_batch = max(self.rows // len(firsts), 1)
    count = min(-(-self._statistics_rows // per_batch), len(firsts))
    chosen = firsts[np.linspace(0, len(firsts) - 1, count).astype(int)]
    total, square, rows = np.zeros(self.width(site)), 0.0, 0
    for _, part in self._batches((site,), chosen):
      values = shards.decode(part[site]).astype(np.float64)
      total += values.sum(axis=0)
      square += float((values * values).sum())
      rows += len(values)
    return np.append(total / rows, square / rows)

  def _batches(
    self, sites: Iterable[str], firsts: Iterable[int]
  ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(first row, each site's rows in stored form) of batches of windows.

    The next batch is computed while one is picked.
    """
    pending = None
    for first in itertools.chain(firsts, [None]):
      acts = None if first is None else self._forward.dispatch(int(first))
      if pending is not None:
        number, before = pending
        rows = {s: self._forward.collect(number, before, s) for s in sites}
        yield int(self._forward.row_starts[number]), rows
      pending = None if first is None else (int(first), acts)

  def hold(self, site: str, rows: np.ndarray) -> LiveHeld:
    """Computes rows, int64 [n] in any order; long runs cost least.

    A whole batch of windows is computed for each row asked for, so scattered
    rows waste most of it. One pass serves all sites: the others' rows wait for
    a stream that reads them in the same order, see `joint`.
    """
    self.width(site)  # or its error
    rows = np.ascontiguousarray(rows, np.int64)
    key = hashlib.sha256(rows).digest()
    with self._passes_lock:
      found = self._passes.get(key)
      asked_first = found is None or site not in found.waiting
      if asked_first:
        found = self._passes[key] = _Pass(set(self.sites))
      found.waiting.discard(site)
      if not found.waiting:
        del self._passes[key]
      while len(self._passes) > _PASSES:
        self._passes.popitem(last=False)
    if asked_first:
      try:
        found.held.set_result(self._compute(self.sites, rows))
      except BaseException as error:  # noqa: BLE001 - raised by who waits
        with self._passes_lock:
          self._passes.pop(key, None)  # the next call tries again
        found.held.set_exception(error)
    return LiveHeld(found.held.result()[site])

  def _compute(
    self, sites: tuple[str, ...], rows: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Rows of sites, [n, D] in stored form each."""
    if len(rows) and not 0 <= rows.min() <= rows.max() < self.rows:
      raise ValueError(
        f"rows {rows.min()}..{rows.max()}: {self.root} has rows"
        f" 0..{self.rows - 1}"
      )
    dtype = shards.stored_dtype(self.plan.dtype)
    held = {s: np.empty((len(rows), self.width(s)), dtype) for s in sites}
    batch = self.plan.batch
    starts = self._forward.row_starts[: self.plan.windows : batch]
    numbers = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(numbers, kind="stable")
    wanted, begins = np.unique(numbers[order], return_index=True)
    bounds = itertools.pairwise([*begins.tolist(), len(rows)])
    computed = self._batches(sites, wanted * batch)
    for (begin, end), (first, part) in zip(bounds, computed, strict=True):
      places = order[begin:end]
      for site in sites:
        held[site][places] = part[site][rows[places] - first]
    return held

  def gather(self, site: str, rows: np.ndarray) -> np.ndarray:
    """Any rows of a site, in the order asked for: float32 [n, D]."""
    rows = np.asarray(rows, np.int64)
    return shards.decode(self._compute((site,), rows)[site])

  def read(self, site: str, start: int, stop: int) -> np.ndarray:
    """Rows start..stop-1 of a site, float32 [stop - start, D]."""
    return self.gather(site, np.arange(start, stop))

  def trace(self, rows: np.ndarray) -> Origins:
    """Where rows, int64 [n], come from."""
    return trace.trace(
      np.asarray(rows, np.int64),
      self.policy,
      self._forward.row_starts,
      self.tokens,
      self.documents,
      self.keys,
    )

  def index(self, start: int, stop: int) -> np.ndarray:
    """Rows start..stop-1: int32 [stop - start, 2], (window, position)."""
    found = self.trace(np.arange(start, stop))
    return np.stack([found.windows, found.positions], axis=1)

  def require_model(self, lm: Any) -> None:
    """Raises `StoreMismatchError` unless the rows are of this model."""
    if lm.weights_hash != self.plan.weights_hash:
      raise StoreMismatchError(
        f"{self.root} gives the rows, but {lm.label} was given (weights"
        f" {lm.weights_hash[:12]}): use the same model"
      )


class _Pass:
  """One pass of the model over some rows.

  Attributes:
    waiting: sites whose rows nobody has taken yet.
    held: future of {site: rows in stored form}.
  """

  def __init__(self, waiting: set[str]):
    self.waiting, self.held = waiting, concurrent.futures.Future()


class LiveHeld:
  """Rows that were computed.

  Attributes:
    rows: [n, D] in stored form.
  """

  def __init__(self, rows: np.ndarray):
    self.rows = rows

  def take(
    self, positions: np.ndarray, out: np.ndarray | None = None
  ) -> np.ndarray:
    """Some of them, [k, D] in stored form."""
    return np.take(self.rows, positions, axis=0, out=out, mode="clip")
