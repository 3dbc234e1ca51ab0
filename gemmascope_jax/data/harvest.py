"""One pass of the language model over windows, into a store.

Any number of sites in one pass, which stops at the last layer that any of them
needs. Only positions that the token policy keeps become rows; they fill shards
to the brim, and the row budget is met exactly.

Windows are computed in batches that start at multiples of `batch`, whatever is
already there, so a shard's bytes do not depend on when, or in how many
attempts, it was made. Shapes are static and there is one compilation: the last
batch is filled up with a window whose rows are dropped. While one batch is
computed, the rows of the one before are copied, checked and written.

Letters: N windows, T tokens in a window, D width of a site.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from gemmascope_jax import gemma
from gemmascope_jax.data import shard_writing, store_writing
from gemmascope_jax.data.forward import Forward, row_starts
from gemmascope_jax.data.lock import write_lock
from gemmascope_jax.data.packing import Windows
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.store import Store
from gemmascope_jax.data.store_plan import DTYPES, StorePlan


def plan(
  lm: Any,
  windows: Windows,
  sites: Iterable[str],
  policy: TokenPolicy,
  *,
  rows: int | None = None,
  rows_per_shard: int = 1 << 16,
  batch: int = 8,
  dtype: str = "float32",
) -> StorePlan:
  """What `harvest` would make of the same arguments.

  Its `name` is a folder name that is the same exactly if the store is.

  Raises:
    ValueError: an argument that no store can be made from.
  """
  names = tuple(str(gemma.sites.check(lm.config, site)) for site in sites)
  if not names or len(set(names)) != len(names):
    raise ValueError(f"sites {names}: expected one or more, each once")
  if dtype not in DTYPES:
    raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
  ends = row_starts(policy, windows.tokens)[1:]
  available = int(ends[-1]) if len(ends) else 0
  rows = available if rows is None else rows
  for name, value in (
    ("rows", rows),
    ("rows_per_shard", rows_per_shard),
    ("batch", batch),
  ):
    if value < 1:
      raise ValueError(f"{name} {value}: expected at least 1")
  if rows > available:
    raise ValueError(
      f"rows {rows:,}: the {len(windows.tokens):,} windows hold only"
      f" {available:,} positions that the token policy keeps; pack more text or"
      " ask for fewer rows"
    )
  used = windows.take(int(np.searchsorted(ends, rows)) + 1)
  largest = int(used.tokens.max())
  if largest >= lm.config.vocab_size or used.tokens.min() < 0:
    raise ValueError(
      f"token id {largest}: {lm.config.name} has a vocabulary of"
      f" {lm.config.vocab_size}; the tokenizer is not the model's"
    )
  return StorePlan(
    model=lm.label,
    weights_hash=lm.weights_hash,
    compute_dtype=str(jax.tree.leaves(lm.params)[0].dtype),
    tokenizer=lm.tokenizer.fingerprint,
    sites=tuple((n, gemma.sites.site_width(lm.config, n)) for n in names),
    policy=policy,
    dtype=dtype,
    rows=rows,
    rows_per_shard=rows_per_shard,
    batch=batch,
    windows=len(used.tokens),
    window=used.tokens.shape[1],
    tokens=used.fingerprint,
  )


def harvest(
  lm: Any,
  windows: Windows,
  sites: Iterable[str],
  root: str | os.PathLike,
  policy: TokenPolicy,
  *,
  rows: int | None = None,
  rows_per_shard: int = 1 << 16,
  batch: int = 8,
  dtype: str = "float32",
  config: dict[str, Any] | None = None,
  progress: bool = True,
) -> Store:
  """Makes a store, or what is missing of it, or just opens it.

  Killed at any moment and run again, it finishes with the same bytes, and
  makes no finished shard twice.

  Args:
    lm: with `config`, `params`, `tokenizer`, `weights_hash` and `label`; the
      parameters of layers that are not needed may be missing.
    windows: int32 [N, T] and their documents. As many as the rows need are
      used, from the first.
    sites: names of the sites, such as ("res.12", "mlp.12").
    root: the store's folder (`plan(...).name` is a good name for it).
    policy: which positions become rows.
    rows: exactly how many rows for each site; None: all that the windows have.
    rows_per_shard: rows in each file but the last. Memory does not depend on
      it.
    batch: windows in one forward pass.
    dtype: of the rows on disk, "float32" or "bfloat16".
    config: the resolved config of the run, for the manifest.
    progress: show a progress bar.

  Returns:
    The finished store.

  Raises:
    ValueError: bad arguments, too little text, or `root` holds something else.
    StoreMismatchError: `root` holds a store of another model, policy, ....
    LockedError: another process writes there.
    OutOfDiskError: the disk is full, or would be; finished shards stay.
    FloatingPointError: the model gave a NaN or an infinity; says where.
  """
  if jax.process_count() > 1:
    raise ValueError(
      f"harvest runs in one process, but this is one of {jax.process_count()}"
    )
  root = pathlib.Path(root)
  asked = plan(
    lm,
    windows,
    sites,
    policy,
    rows=rows,
    rows_per_shard=rows_per_shard,
    batch=batch,
    dtype=dtype,
  )
  store_writing.require_same_plan(root, asked)
  if not store_writing.is_whole(root, asked):
    with write_lock(root, store_writing.LOCK):
      store_writing.require_same_plan(root, asked)
      store_writing.remove_leftovers(root)
      used = windows.take(asked.windows)
      store_writing.write_first(root, asked, used)
      _write_rows(root, asked, lm, used.tokens, progress)
      store_writing.write_last(root, asked, used, config)
  return Store.open(root)


def _write_rows(
  root: pathlib.Path,
  asked: StorePlan,
  lm: Any,
  tokens: np.ndarray,
  progress: bool,
) -> None:
  """Computes and writes the shards that are not finished."""
  with contextlib.ExitStack() as stack:
    writers = {
      site: stack.enter_context(shard_writing.SiteWriter(root, asked, site))
      for site, _ in asked.sites
    }
    missing = {shard for w in writers.values() for shard in w.missing}
    store_writing.require_space(root, asked, writers)
    done = asked.rows - sum(asked.shard_rows(shard) for shard in missing)
    bar = stack.enter_context(
      tqdm.tqdm(
        total=asked.rows,
        initial=done,
        desc=f"harvest {', '.join(writers)}",
        unit=" rows",
        unit_scale=True,
        disable=not progress or not missing,
      )
    )
    # One thread writes while the next batch computes. It is left before the
    # writers are, so that they see its exception.
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    pending = None
    forward = Forward(lm, asked, tokens)
    for job in _jobs(asked, forward.row_starts, missing):
      acts = forward.dispatch(job.first)
      if pending is not None:
        bar.update(pending.result())
      pending = pool.submit(_write_batch, forward, job, acts, writers)
    if pending is not None:
      bar.update(pending.result())


class _Job(NamedTuple):
  """A batch of windows from `first` on, whose rows begin at `start`."""

  first: int
  start: int
  new_rows: int  # of them, in shards that are missing


def _jobs(
  asked: StorePlan, starts: np.ndarray, missing: set[int]
) -> Iterator[_Job]:
  """The batches with rows in missing shards, in order."""
  size = asked.rows_per_shard
  for first in range(0, asked.windows, asked.batch):
    stop = min(first + asked.batch, asked.windows)
    start, end = int(starts[first]), int(starts[stop])
    new_rows = sum(
      min(end, (shard + 1) * size) - max(start, shard * size)
      for shard in range(start // size, -(-end // size))
      if shard in missing
    )
    if new_rows:
      yield _Job(first, start, new_rows)


def _write_batch(
  forward: Forward,
  job: _Job,
  acts: dict[str, jax.Array],
  writers: dict[str, shard_writing.SiteWriter],
) -> int:
  """Waits for a batch, checks and writes its rows; returns the new ones."""
  for site, writer in writers.items():
    writer.write(job.start, forward.collect(job.first, acts, site))
  return job.new_rows
