"""Compiles Gemma 2 27B, all layers, for 16 devices; prints what each needs.

python compile_27b.py
"""

import dataclasses
import json
import os

DEVICES = 16


def main() -> None:
  os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
  os.environ.update(JAX_PLATFORMS="cpu", PJRT_NPROC=str(DEVICES))
  from gemmascope_jax import gemma, parallel
  from gemmascope_jax.data.stores import footprint

  found = footprint.measure(
    gemma.preset("gemma-2-27b"),
    ("res.45",),
    batch=16,
    window=1024,
    compute_dtype="float32",
    dtype="float32",
    mesh=parallel.make_mesh({"data": 4, "model": 4}),
    fully_sharded=True,
  )
  print(json.dumps(dataclasses.asdict(found) | {"peak": found.peak}))


if __name__ == "__main__":
  main()
