"""One pass of the language model over windows, into a store.

Any number of sites in one pass, which stops at the last layer that any of them
needs. Only positions that the token policy keeps become rows; they fill shards
to the brim, and the row budget is met exactly.

Windows are computed in batches that start at multiples of `batch`, whatever is
already there, so a shard's bytes do not depend on when, in how many attempts
or by which of several processes it was made. While one batch is computed, the
rows of those before are copied, checked and written, each site by a thread of
its own.

Letters: N windows, T tokens in a window, D width of a site.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from gemmascope_jax import gemma, throughput
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.stores import store_writing
from gemmascope_jax.data.stores.files import Folder, folder
from gemmascope_jax.data.stores.forward import Forward, row_starts
from gemmascope_jax.data.stores.shard_writing import SiteWriter
from gemmascope_jax.data.stores.store import Store
from gemmascope_jax.data.stores.store_plan import DTYPES, StorePlan
from gemmascope_jax.data.tokens.packing import Windows
from gemmascope_jax.throughput import Meter

AHEAD = 2  # batches that wait to be written while the next is computed


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
  part: tuple[int, int] = (0, 1),
  patience_s: float = 3600.0,
  mesh: Mesh | None = None,
  config: dict[str, Any] | None = None,
  progress: bool = True,
  meter: Meter | None = None,
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
    root: the store's folder (`plan(...).name` is a good name for it): a path,
      or a URL that fsspec knows.
    policy: which positions become rows.
    rows: exactly how many rows for each site; None: all that the windows have.
    rows_per_shard: rows in each file but the last. Memory does not depend on
      it.
    batch: windows in one forward pass.
    dtype: of the rows on disk, "float32" or "bfloat16".
    part: (p, n): this is process p of n that fill one store, each with the
      same other arguments; it makes a contiguous slice of the shards and
      returns when the others are done, too. They share nothing but the folder.
    patience_s: how long to wait without any new shard from the others.
    mesh: devices that share the windows of a batch; see `Forward`.
    config: the resolved config of the run, for the manifest.
    progress: show a progress bar, and at the end what the time went into.
    meter: counts rows, bytes and what is waited for; None: an own one.

  Returns:
    The finished store.

  Raises:
    ValueError: bad arguments, too little text, or `root` holds something else.
    StoreMismatchError: `root` holds a store of another model, policy, ....
    LockedError: another process writes there, or makes the same part.
    OutOfDiskError: the disk is full, or would be; finished shards stay.
    FloatingPointError: the model gave a NaN or an infinity; says where.
    TimeoutError: the other parts make no progress; names what is missing.
  """
  number, parts = part
  if not 0 <= number < parts:
    raise ValueError(
      f"part {number} of {parts}: expected 0..{max(parts - 1, 0)}, of 1 or more"
    )
  files = folder(root)
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
  store_writing.require_same_plan(files, asked)
  if store_writing.is_whole(files, asked):
    return Store.open(root)
  used = windows.take(asked.windows)
  meter = meter or Meter()
  mine = store_writing.part_shards(asked, number, parts)

  def make(name: str) -> None:
    forward = Forward(lm, asked, used.tokens, mesh)
    _write_rows(files, asked, forward, mine, name, progress, meter)

  if parts == 1:
    with files.lock(store_writing.LOCK):
      store_writing.require_same_parts(files, 1)
      store_writing.require_same_plan(files, asked)
      store_writing.remove_leftovers(files, asked, lambda shard: True)
      store_writing.write_first(files, asked, used)
      make("harvest")
      store_writing.write_last(files, asked, used, config)
  else:
    with contextlib.ExitStack() as held:
      with store_writing.patient_lock(files, store_writing.LOCK, patience_s):
        store_writing.require_same_plan(files, asked)
        store_writing.require_same_parts(files, parts)
        held.enter_context(files.lock(store_writing.part_lock(number, parts)))
        store_writing.remove_leftovers(
          files, asked, lambda shard: shard is None or shard in mine
        )
        store_writing.write_first(files, asked, used)
      make(f"harvest, part {number} of {parts}:")
    _await_others(files, asked, patience_s, progress)
    with store_writing.patient_lock(files, store_writing.LOCK, patience_s):
      store_writing.write_last(files, asked, used, config)
  return Store.open(root)


def _write_rows(
  files: Folder,
  asked: StorePlan,
  forward: Forward,
  mine: range,
  name: str,
  progress: bool,
  meter: Meter,
) -> None:
  """Computes and writes those of the shards `mine` that are not finished."""
  missing = store_writing.unfinished(files, asked, mine)
  if not missing:
    return
  store_writing.require_space(files, asked, missing)
  anywhere = {shard for lacking in missing.values() for shard in lacking}
  count = lambda which: sum(asked.shard_rows(shard) for shard in which)
  with contextlib.ExitStack() as stack:
    bar = stack.enter_context(
      tqdm.tqdm(
        total=count(mine),
        initial=count(mine) - count(anywhere),
        desc=f"{name} {', '.join(missing)}",
        unit=" rows",
        unit_scale=True,
        disable=not progress,
      )
    )
    # Each site's rows have a thread. They are left before the writers are, so
    # that a writer sees its thread's exception.
    writers = {
      site: stack.enter_context(SiteWriter(files, asked, site, lacking))
      for site, lacking in missing.items()
    }
    threads = {
      site: stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
      for site in missing
    }
    pending: collections.deque[_Batch] = collections.deque()

    def finish_oldest() -> None:
      done = pending.popleft()
      with meter.waiting("language model"):
        jax.block_until_ready(done.acts)
      with meter.waiting("disk"):
        size = sum(future.result() for future in done.written)
      meter.add(done.rows, size)
      bar.update(done.rows)

    try:
      for first, new_rows in _batches(asked, forward.row_starts, anywhere):
        acts = forward.dispatch(first)
        written = [
          threads[site].submit(_write_batch, forward, first, acts, writer)
          for site, writer in writers.items()
        ]
        pending.append(_Batch(new_rows, acts, written))
        while len(pending) > AHEAD:
          finish_oldest()
      while pending:
        finish_oldest()
    except BaseException:
      for batch in pending:
        for future in batch.written:
          future.cancel()
      raise
  if progress:
    print(f"{name} {throughput.rate(meter.total())}", file=sys.stderr)


class _Batch(NamedTuple):
  """A batch on its way: new rows in it, activations, futures of its writing."""

  rows: int
  acts: dict[str, jax.Array]
  written: list[concurrent.futures.Future]


def _batches(
  asked: StorePlan, starts: np.ndarray, missing: set[int]
) -> Iterator[tuple[int, int]]:
  """(first window, rows in missing shards) of the batches that have any."""
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
      yield first, new_rows


def _write_batch(
  forward: Forward, first: int, acts: dict[str, jax.Array], writer: SiteWriter
) -> int:
  """Waits for a batch, checks and writes a site's rows; returns their bytes."""
  rows = forward.collect(first, acts, writer.site)
  writer.write(int(forward.row_starts[first]), rows)
  return rows.nbytes


def _await_others(
  files: Folder, asked: StorePlan, patience_s: float, progress: bool
) -> None:
  """Waits until all shards of all parts are finished."""
  total = asked.shards * len(asked.sites)
  last, pause = time.monotonic(), 0.2
  with tqdm.tqdm(
    total=total,
    desc="harvest: waiting for other parts",
    unit=" shards",
    disable=not progress,
  ) as bar:
    while missing := store_writing.unfinished(files, asked):
      done = total - sum(map(len, missing.values()))
      if done > bar.n:
        bar.update(done - bar.n)
        last = time.monotonic()
      if time.monotonic() - last > patience_s:
        site, lacking = next(iter(missing.items()))
        raise TimeoutError(
          f"{files.root}: no other part has finished a shard for"
          f" {patience_s:,.0f} s; {total - done} of {total} are missing, such as"
          f" shards {lacking[0]}..{lacking[-1]} of {site}. Start the parts that"
          " ended again (or run without parts, which makes what is missing)"
        )
      time.sleep(pause)
      pause = min(pause * 1.5, 5.0)
