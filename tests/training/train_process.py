"""One process of two that train a run together.

python -m tests.training.train_process PORT PROCESS FOLDER PAUSE
"""

import os
import sys
import time

# Two devices a process; see conftest.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["PJRT_NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402


def main(port: str, process: str, folder: str, pause: str) -> None:
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
  from gemmascope_jax import parallel, training
  from tests import rows_stream
  from tests.training import run_test

  class Stream(rows_stream.RowsStream):
    def iterate(self, start=0, stop=None, *, part=slice(None)):
      for step, batch in super().iterate(start, stop, part=part):
        if stop <= run_test.RECIPE.steps:  # not the sample
          time.sleep(float(pause))
        yield step, batch

  try:
    training.train(
      Stream(run_test.RECIPE.batch_size),
      run_test.SWEEP,
      folder,
      seed=1,
      schedule=run_test.QUIET,
      mesh=parallel.make_mesh({"data": 2, "model": 2}),
    )
  except training.PreemptedError as error:
    print(error)
    sys.exit(143)


if __name__ == "__main__":
  main(*sys.argv[1:])
