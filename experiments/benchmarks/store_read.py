"""Reading: the shuffled stream against plain sequential reads, one process each.

The rows are those of a real Gemma, only of one small layer, so that width 2304
(Gemma 2 2B's) is made in seconds.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import numpy as np

from experiments.benchmarks import workers

WIDTH = 2304
BATCH = 4096
SITE = "res.0"
_WINDOW = 1024
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class _Lm:
  config: Any
  params: Any
  tokenizer: Any
  weights_hash: str = "benchmark"
  label: str = "one small layer"


class _Tokenizer:
  pad_id, eos_id, bos_id = 0, 1, 2
  fingerprint = "benchmark"


def make(root: pathlib.Path, gib: float):
  """A store of `gib` GiB of float32 rows, in four shards."""
  import jax

  from gemmascope_jax import gemma
  from gemmascope_jax.data import policy
  from gemmascope_jax.data.stores import harvest
  from gemmascope_jax.data.tokens import packing

  config = gemma.GemmaConfig(
    name="benchmark",
    vocab_size=4096,
    width=WIDTH,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=16,
    mlp_width=16,
    query_pre_attn_scalar=16.0,
    layer_pattern=("local",),
    window=16,
  )
  params = jax.jit(lambda key: gemma.init(config, key))(jax.random.key(0))
  rows = int(gib * 2**30 / (4 * WIDTH))
  random = np.random.default_rng(0)
  windows = -(-rows // (_WINDOW - 1))
  tokens = random.integers(3, 4096, (windows, _WINDOW)).astype(np.int32)
  tokens[:, 0] = _Tokenizer.bos_id
  documents = np.zeros_like(tokens)
  documents[:, 0] = packing.NO_DOCUMENT
  return harvest.harvest(
    _Lm(config, params, _Tokenizer()),
    packing.Windows(tokens, documents, np.zeros(1, np.uint64)),
    (SITE,),
    root,
    policy.TokenPolicy.of(_Tokenizer()),
    rows=rows,
    rows_per_shard=-(-rows // 4),
    batch=4,
  )


def shard_files(root: pathlib.Path) -> list[pathlib.Path]:
  """The files of rows, in order."""
  return sorted((pathlib.Path(root) / SITE).glob("[0-9]*[0-9].npy"))


def drop_cache(root: pathlib.Path) -> None:
  """Asks the system to forget the files' content."""
  for path in pathlib.Path(root).rglob("*.npy"):
    with open(path, "rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _serve_plain() -> None:
  buffer = np.empty((BATCH, WIDTH), np.float32)

  def measure(request):
    size, start = 0, time.perf_counter()
    for path in shard_files(request["root"]):
      with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
          size += count
    return {"rate": size / (time.perf_counter() - start)}

  workers.serve(measure)


def _serve_stream() -> None:
  from gemmascope_jax.data.stores.store import Store
  from gemmascope_jax.data.streams.order import Shuffle
  from gemmascope_jax.data.streams.stream import StoreStream

  def measure(request):
    store = Store.open(request["root"])
    shuffle = Shuffle(0, request["kind"], request["bucket"], request["block"])
    stream = StoreStream(store, SITE, BATCH, shuffle)
    steps = store.rows // BATCH
    start, anonymous = time.perf_counter(), 0.0
    for step, _ in stream.iterate(0, steps):
      if step % 8 == 0:
        anonymous = max(anonymous, workers.anonymous_gib())
    seconds = time.perf_counter() - start
    del stream, store
    gc.collect()  # files that are mapped stay in the cache
    return {"rate": steps * BATCH * WIDTH * 4 / seconds, "anonymous": anonymous}

  workers.serve(measure)


_ORDERS = (
  ("buckets of 65,536 rows", dict(kind="bucket", bucket=1 << 16, block=256)),
  ("one bucket, all rows", dict(kind="bucket", bucket=1 << 20, block=256)),
  ("global, blocks of 256", dict(kind="global", bucket=1 << 16, block=256)),
  ("global, single rows", dict(kind="global", bucket=1 << 16, block=1)),
)


def measure(root: pathlib.Path) -> None:
  """Prints a table of rates and ratios."""
  plain = workers.Worker(__name__, "plain")
  stream = workers.Worker(__name__, "stream")
  print(
    "| cache | order | stream, GiB/s | plain readinto, GiB/s | ratio |"
    " memory, GiB |\n|---|---|---|---|---|---|",
    flush=True,
  )
  for cold in (False, True):
    for label, order in _ORDERS:
      ours, theirs, anonymous = [], [], 0.0
      if not cold:  # fills the cache
        plain.ask({"root": str(root)})
        stream.ask({"root": str(root)} | order)
      for _ in range(_ROUNDS):
        if cold:
          drop_cache(root)
        theirs.append(plain.ask({"root": str(root)})["value"]["rate"])
        if cold:
          drop_cache(root)
        found = stream.ask({"root": str(root)} | order)["value"]
        ours.append(found["rate"])
        anonymous = max(anonymous, found["anonymous"])
      ratio = statistics.median(
        o / t for o, t in zip(ours, theirs, strict=True)
      )
      print(
        f"| {'cold' if cold else 'warm'} | {label} |"
        f" {statistics.median(ours) / 2**30:.2f} |"
        f" {statistics.median(theirs) / 2**30:.2f} | {ratio:.2f} |"
        f" {anonymous:.2f} |",
        flush=True,
      )
  plain.close()
  stream.close()


if __name__ == "__main__":
  {"plain": _serve_plain, "stream": _serve_stream}[sys.argv[1]]()
