"""Compiles the step of a 2^20-latent SAE of 9B for 16 devices; prints bytes.

python compile_wide.py
"""

import json
import os

DEVICES, WIDTH, LATENTS = 16, 3584, 2**20


def main() -> None:
  os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
  os.environ.update(JAX_PLATFORMS="cpu", PJRT_NPROC=str(DEVICES))
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P

  from gemmascope_jax import parallel
  from gemmascope_jax.sae import costs, sweep
  from gemmascope_jax.sae.config import Recipe
  from gemmascope_jax.sae.families.dictionary import Sample
  from gemmascope_jax.sae.train_step import Knobs

  recipe = Recipe(width=LATENTS)
  mesh = parallel.make_mesh({"model": DEVICES})
  shape = jax.ShapeDtypeStruct
  x = shape((recipe.batch_size, WIDTH), jnp.float32)
  mean = shape((WIDTH,), jnp.float32)
  state = jax.eval_shape(
    sweep.init_fn(recipe, mesh), jax.random.key(0), Sample(x, x, mean, mean)
  )
  state = jax.tree.map(
    lambda leaf, sharding: shape(leaf.shape, leaf.dtype, sharding=sharding),
    state,
    parallel.shardings(state, mesh, parallel.SAE_RULES),
  )
  x = shape(x.shape, x.dtype, sharding=NamedSharding(mesh, P()))
  lowered = sweep.step_fn(recipe, mesh).lower(state, x, x, Knobs.of(recipe))
  # For memory, as compilers for accelerators do, and not for more threads:
  compiled = lowered.compile(
    {
      "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
      "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    }
  )
  memory = compiled.memory_analysis()
  held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  held += memory.output_size_in_bytes - memory.alias_size_in_bytes
  print(
    json.dumps(
      {
        "held": held,
        "state": memory.alias_size_in_bytes,
        "derived": costs.peak_bytes(recipe, WIDTH, WIDTH, model=DEVICES),
        "derived_state": costs.state_bytes(recipe, WIDTH, WIDTH, DEVICES),
      }
    )
  )


if __name__ == "__main__":
  main()
