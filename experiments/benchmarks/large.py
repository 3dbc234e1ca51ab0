"""A model too large for one device: memory, operations and rate of each.

From shapes, compiled for as many virtual devices of the CPU: nothing is loaded
or run, so 27B can be looked at on a laptop.

  python -m experiments.benchmark large
      Gemma 2 27B, all layers, on 16 devices, in several ways.
  python -m experiments.benchmark large --large_model=gemma-2-9b \\
    --large_devices=8 --large_site=res.20 --large_accelerator=tpu_v5e

The CPU's compiler joins fewer operations than accelerators' do, so it counts
more bytes moved; rates take the published peaks, without any utilisation, and
are a limit from above.
"""

from __future__ import annotations

import os

from absl import flags

_MODEL = flags.DEFINE_string("large_model", "gemma-2-27b", "large: a preset.")
_DEVICES = flags.DEFINE_integer("large_devices", 16, "large: how many.")
_SITE = flags.DEFINE_string(
  "large_site", "", "large: up to where the model runs; default: all of it."
)
_WINDOW = flags.DEFINE_integer("large_window", 1024, "large: tokens.")
_DTYPE = flags.DEFINE_enum(
  "large_dtype", "float32", ["float32", "bfloat16"], "large: of the weights."
)
_ACCELERATOR = flags.DEFINE_string(
  "large_accelerator", "tpu_v5p", "large: whose peaks; see launch.planner."
)
_PRECISION = {"float32": "highest", "bfloat16": "bfloat16"}


def main() -> None:
  """Compiles, and prints a table for docs/large_models.md."""
  devices = _DEVICES.value
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={devices}"
  )
  os.environ.update(JAX_PLATFORMS="cpu", PJRT_NPROC=str(max(16, devices)))
  from gemmascope_jax import gemma, parallel
  from gemmascope_jax.data.stores import footprint
  from launch.planner import accelerators

  config = gemma.preset(_MODEL.value)
  chip = accelerators.find(_ACCELERATOR.value)
  site = _SITE.value or f"res.{config.num_layers - 1}"
  print(
    f"{config.name} to {site}, {_DTYPE.value}, {devices} devices, one sequence"
    f" of {_WINDOW.value} for each; rates of {chip.name}\n"
  )
  print(
    "| data x model | weights | GiB a device: weights | temporaries | 3 x"
    " activations | peak | GFLOP a token | tokens/s a device, at most | whole |"
  )
  print("|---|---|---|---|---|---|---|---|---|", flush=True)
  for data, model, fully_sharded in _ways(devices):
    found = footprint.measure(
      config,
      (site,),
      batch=devices,
      window=_WINDOW.value,
      compute_dtype=_DTYPE.value,
      dtype=_DTYPE.value,
      mesh=parallel.make_mesh({"data": data, "model": model}),
      fully_sharded=fully_sharded,
      held=3,
    )
    rate = found.tokens_per_second(
      chip.peak(_PRECISION[_DTYPE.value]), chip.bandwidth
    )
    gib = [
      found.weights,
      found.temporaries,
      found.held * found.outputs,
      found.peak,
    ]
    print(
      f"| {data} x {model} | {'fully' if fully_sharded else 'model only'} |"
      f" {' | '.join(f'{size / 2**30:.2f}' for size in gib)} |"
      f" {found.flops / found.device_tokens / 1e9:.1f} | {rate:.0f} |"
      f" {', '.join(found.kept_whole) or 'nothing'} |",
      flush=True,
    )


def _ways(devices: int):
  """(data, model, fully sharded): all along model, both, all along data."""
  middle = 1
  while middle * middle * 2 <= devices and devices % (2 * middle) == 0:
    middle *= 2
  yield 1, devices, False
  yield devices // middle, middle, False
  yield devices // middle, middle, True
  yield devices, 1, True
