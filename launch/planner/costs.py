"""The costs of a config, by arithmetic.

B batch rows, D width of the input, E of the target, M latents; GiB, TiB and PiB
are powers of 1024.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gemmascope_jax.data.stores import shards
from gemmascope_jax.experiment import settings
from gemmascope_jax.gemma import costs as gemma_costs
from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.config import PRESETS, GemmaConfig, preset
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families import dictionary
from gemmascope_jax.sae.train_step import init_state
from gemmascope_jax.training import utilisation as steps
from launch.planner.accelerators import UTILISATION, Accelerator

Config = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Machine:
  """What runs it; every value is to be replaced by yours.

  Attributes:
    accelerator: of which the devices are.
    devices: that a trainer, or a harvest, has.
    utilisation: share of the peak that is reached, in training.
    forward_utilisation: the same in the forward pass.
    disk_gib_s: what one server reads from its disks.
    network_gib_s: what one server sends.
    tib_month_dollars: of storage.
  """

  accelerator: Accelerator
  devices: int = 1
  utilisation: float = UTILISATION
  forward_utilisation: float = UTILISATION
  disk_gib_s: float = 0.2
  network_gib_s: float = 1.1
  tib_month_dollars: float = 10.0

  def __post_init__(self):
    """Refuses what no machine is.

    Raises:
      ValueError: names the flag.
    """
    for name in ("devices", "disk_gib_s", "network_gib_s"):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(
          f"--{name}={getattr(self, name)}: expected more than 0, and finite"
        )
    if not 0 <= self.tib_month_dollars < math.inf:
      raise ValueError(
        f"--tib_month_dollars={self.tib_month_dollars}: expected 0 or"
        " more, and finite"
      )
    for name in ("utilisation", "forward_utilisation"):
      if not 0 < getattr(self, name) <= 1:
        raise ValueError(
          f"--{name}={getattr(self, name)}: expected a share of the peak, above 0"
          " and at most 1"
        )


@dataclasses.dataclass(frozen=True)
class Harvest:
  """Of one pass of the model that writes the sites.

  Attributes:
    tokens: that go through the model, those without a row (BOS) included.
    flops: operations.
    device_hours: of the accelerator.
    site_bytes: on disk, by site; none if nothing is stored.
    index_bytes: of the tokens that the rows belong to.
    seconds: on the machine's devices.
  """

  tokens: float
  flops: float
  device_hours: float
  site_bytes: dict[str, int]
  index_bytes: int
  seconds: float

  @property
  def bytes(self) -> int:
    """Of all sites and the tokens."""
    return sum(self.site_bytes.values()) + self.index_bytes


@dataclasses.dataclass(frozen=True)
class Training:
  """Of one SAE.

  Attributes:
    recipe: of it.
    steps: in all.
    step_seconds: of one, on the machine's devices.
    flops: operations, in all.
    device_hours: of the accelerator.
    batch_bytes: of activations that a step reads.
    state_bytes: weights, moments and counters: a checkpoint, and what stays in
      the devices' memory (gradients come on top).
    sae_bytes: the finished SAE.
  """

  recipe: Recipe
  steps: int
  step_seconds: float
  flops: float
  device_hours: float
  batch_bytes: int
  state_bytes: int
  sae_bytes: int


def model(config: Config, name: str = "") -> GemmaConfig:
  """The architecture that a config names, without its weights.

  Args:
    config: `lm.source` ends with a known name, or is "demo".
    name: of the architecture, if it does not.

  Raises:
    ValueError: neither tells, or they differ.
  """
  if name and name not in PRESETS:
    raise ValueError(f"--model={name}: expected one of {', '.join(PRESETS)}")
  found = settings.architecture(config)
  if not found and not name:
    raise ValueError(
      f"lm.source is {config.lm.source!r}, which is no known architecture: give"
      f" --model, one of {', '.join(PRESETS)}"
    )
  if found and name and found.name != name:
    raise ValueError(
      f"--model={name}, but lm.source is {config.lm.source!r}: leave --model out,"
      f" or give --config.lm.source={name}"
    )
  return found or preset(name)


def harvest(config: Config, lm: GemmaConfig, machine: Machine) -> Harvest:
  """What the activations cost that a config trains on.

  With data.source "live" the model runs for each row that is trained on, and
  nothing is stored.

  Args:
    config: sites, rows, window, dtypes.
    lm: the model.
    machine: what runs it.
  """
  live = config.data.source == "live"
  names = settings.trained_sites(config) if live else config.harvest.sites
  rows = config.train.tokens if live else config.harvest.rows
  # Each window has one position without a row: BOS.
  tokens = rows * config.data.window / (config.data.window - 1)
  layers = sites.layers_needed(lm, names)
  each = gemma_costs.flops_of_token(lm, layers, config.data.window)
  precision = "bfloat16" if config.lm.dtype == "bfloat16" else "highest"
  rate = machine.accelerator.peak(precision) * machine.forward_utilisation
  flops = tokens * each
  return Harvest(
    tokens,
    flops,
    flops / rate / 3600,
    {
      name: store_bytes(
        rows,
        sites.site_width(lm, name),
        config.harvest.dtype,
        config.harvest.rows_per_shard,
      )
      for name in (() if live else names)
    },
    0 if live else index_bytes(rows, config.data.window),
    flops / rate / machine.devices,
  )


def index_bytes(rows: int, window: int) -> int:
  """Tokens, documents and row numbers of a store whose windows are full.

  The documents' keys, 8 bytes each, come on top.

  Args:
    rows: of a site.
    window: positions, of which the first has no row.
  """
  windows = -(-rows // (window - 1))
  tokens = shards.NpyForm(np.dtype("<i4"), (windows, window)).bytes
  starts = shards.NpyForm(np.dtype("<i8"), (windows + 1,)).bytes
  return 2 * tokens + starts


def store_bytes(rows: int, width: int, dtype: str, rows_per_shard: int) -> int:
  """One site's arrays (rows, their checks, their sums), to the byte.

  Args:
    rows: of the site.
    width: of a row.
    dtype: on disk.
    rows_per_shard: of every shard but the last.
  """
  whole, rest = divmod(rows, rows_per_shard)
  sums = shards.NpyForm(np.dtype("<f8"), (2, width)).bytes
  return sums + sum(
    count
    * (
      shards.NpyForm(shards.stored_dtype(dtype), (size, width)).bytes
      + shards.NpyForm(np.dtype("<u8"), (size,)).bytes
      + sums
    )
    for count, size in ((whole, rows_per_shard), (1, rest))
    if count and size
  )


def training(
  config: Config, lm: GemmaConfig, machine: Machine
) -> list[Training]:
  """What each SAE costs.

  A step is dense (`utilisation.step_flops`), as on accelerators; a CPU's sparse
  step needs less.

  Args:
    config: sites, recipes.
    lm: the model.
    machine: what runs it.
  """
  reads = [sites.site_width(lm, site) for site in settings.input_sites(config)]
  target = config.train.target_site
  inputs = sum(reads)
  outputs = sites.site_width(lm, target) if target else inputs
  itemsize = shards.stored_dtype(config.harvest.dtype).itemsize
  widths = inputs + (outputs if target else 0)
  found = []
  for recipe in settings.recipes(config):
    flops = steps.step_flops(recipe, inputs, outputs)
    rate = machine.accelerator.peak(recipe.matmul_precision)
    rate *= machine.utilisation
    found.append(
      Training(
        recipe,
        recipe.steps,
        flops / rate / machine.devices,
        recipe.steps * flops,
        recipe.steps * flops / rate / 3600,
        recipe.batch_size * widths * itemsize,
        *_sizes(recipe, inputs, outputs),
      )
    )
  return found


def _sizes(recipe: Recipe, inputs: int, outputs: int) -> tuple[int, int]:
  """Bytes of the training state, and of a finished SAE; nothing is allocated."""
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  state = jax.eval_shape(
    functools.partial(init_state, dataclasses.replace(recipe, start="")),
    jax.eval_shape(lambda: jax.random.key(0)),
    dictionary.Sample(
      shape(recipe.batch_size, inputs),
      shape(recipe.batch_size, outputs),
      shape(inputs),
      shape(outputs),
    ),
  )
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  finished = recipe.width * (inputs + outputs + 2) + outputs
  if recipe.skip:
    finished += inputs * outputs
  return size, 4 * finished
