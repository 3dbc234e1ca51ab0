"""One process of several that load a model onto the devices of all of them, and run it.

python -m tests.gemma.weights.read_process PORT PROCESS COUNT FOLDER
"""

import json
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

  parallel.start(f"127.0.0.1:{port},{count},{process}")
  import jax
  import numpy as np

  from gemmascope_jax.data.stores import forward
  from gemmascope_jax.gemma.weights import huggingface, layout
  from gemmascope_jax.parallel import rules

  weights = huggingface.open_folder(folder)
  params = {}

  def read(fully_sharded):
    mesh = parallel.make_mesh({"data": 2, "model": 2})
    params.update(
      layout.read_params(
        weights.config,
        weights.find,
        num_layers=weights.config.num_layers,
        dtype=np.float32,
        mesh=mesh,
        partition=rules.for_lm(fully_sharded),
      )
    )

  said = {}
  for fully_sharded in (False, True):
    before = weights.bytes_read(), _by_the_system()
    read(fully_sharded)
    said[str(fully_sharded)] = {
      "counted": weights.bytes_read() - before[0],
      "system": _by_the_system() - before[1],
      "of": sum(x.nbytes for x in jax.tree.leaves(params)),
      "whole": sum(
        x.nbytes for x in jax.tree.leaves(params) if x.is_fully_replicated
      ),
    }
  mesh = parallel.make_mesh({"data": 2, "model": 2})
  acts = forward.taps(
    params,
    jax.device_put(tokens(), forward.by_sequence(mesh)),
    None,
    config=weights.config,
    sites=("res.1",),
    dtype="float32",
    mesh=mesh,
  )
  said["activations"] = np.asarray(acts["res.1"]).tolist()
  print(json.dumps(said))
  jax.distributed.shutdown()


def tokens():
  """int32 [4, 8], the same in every process."""
  import numpy as np

  return np.arange(32, dtype=np.int32).reshape(4, 8)


def _by_the_system() -> int:
  """Bytes that this process has asked the system for, of all files."""
  with open("/proc/self/io") as file:
    return int(file.readline().removeprefix("rchar:"))


if __name__ == "__main__":
  main(*sys.argv[1:])
