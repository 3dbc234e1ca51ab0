"""One process of several whose devices share each SAE's latents.

python -m tests.parallel.latents_process PORT PROCESS COUNT FOLDER
"""

import os
import sys

DEVICES = 4  # in all processes together


def main(port, process, count, folder) -> None:
  process, count = int(process), int(count)
  os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={DEVICES // count}"
  )
  os.environ.update(JAX_PLATFORMS="cpu", PJRT_NPROC="16")
  from gemmascope_jax import parallel

  if count > 1:
    parallel.start(f"127.0.0.1:{port},{count},{process}")
  import jax
  import numpy as np
  import pytest

  from gemmascope_jax import sae, training
  from tests import rows_stream
  from tests.parallel import latents_processes_test as the

  schedule = training.Schedule(log_every=4, checkpoint_every=5, progress=False)
  train = lambda mesh: training.train(
    rows_stream.RowsStream(the.ROWS),
    the.RECIPES,
    folder,
    schedule=schedule,
    mesh=mesh,
  )
  if count > 1:
    for few in (None, parallel.make_mesh({"model": DEVICES // count})):
      with pytest.raises(ValueError, match="product is 4, the number of all"):
        train(few)
  mesh = parallel.make_mesh({"model": DEVICES})
  finished = train(mesh)
  # Loaded onto the devices of all processes, each has its own latents.
  for path in finished:
    whole, split = sae.load(path), sae.load(path, mesh=mesh)
    for shard in split.params.w_enc.addressable_shards:
      assert shard.data.shape[1] * DEVICES == whole.width
      np.testing.assert_array_equal(shard.data, whole.params.w_enc[shard.index])
  if count > 1:
    jax.distributed.shutdown()


if __name__ == "__main__":
  main(*sys.argv[1:])
