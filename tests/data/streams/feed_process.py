"""One process of several that feed a mesh: saves the rows its devices hold.

python feed_process.py STORE SITE KIND PROCESS COUNT PORT OUT
"""

import os
import sys

DEVICES = 4  # in all processes together


def main(root, site, kind, process, count, port, out) -> None:
  process, count = int(process), int(count)
  os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={DEVICES // count}"
  )
  os.environ.update(JAX_PLATFORMS="cpu", PJRT_NPROC="16")
  import jax
  import numpy as np

  from gemmascope_jax import parallel
  from gemmascope_jax.data.stores.store import Store
  from gemmascope_jax.data.streams import feed
  from gemmascope_jax.data.streams.order import Shuffle
  from gemmascope_jax.data.streams.stream import StoreStream

  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, process)
  mesh = parallel.make_mesh({"data": DEVICES})
  shuffle = Shuffle(3, kind, bucket_rows=256, block_rows=16)
  stream = StoreStream(Store.open(root), site, 60, shuffle)
  found = []
  for _, batch in feed.Feed(stream, mesh).iterate(0, 30):  # two epochs
    here = np.full(batch.shape, np.nan, np.float32)
    for shard in batch.addressable_shards:
      here[shard.index] = shard.data
    found.append(here)
  np.save(out, np.stack(found))
  if count > 1:
    jax.distributed.shutdown()


if __name__ == "__main__":
  main(*sys.argv[1:])
