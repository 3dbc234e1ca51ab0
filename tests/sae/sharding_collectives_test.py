"""What devices tell each other, read from the compiled step.

At the size of the paper's benchmark: width 2^17 on 9B, batch 4,096, 8 devices;
from shapes alone.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gemmascope_jax import parallel
from gemmascope_jax.sae import costs, sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families.dictionary import Sample
from gemmascope_jax.sae.train_step import Knobs

WIDTH, ROWS, LATENTS = 3584, 4096, 2**17
_KINDS = (
  "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
  "|collective-broadcast|ragged-all-to-all"
)


def collectives(recipe, axes):
  """(kind, shape) of every array that a compiled step sends."""
  mesh = parallel.make_mesh(axes)
  shape = jax.ShapeDtypeStruct
  x, mean = shape((ROWS, WIDTH), jnp.float32), shape((WIDTH,), jnp.float32)
  state = jax.eval_shape(
    sweep.init_fn(recipe, mesh), jax.random.key(0), Sample(x, x, mean, mean)
  )
  state = jax.tree.map(
    lambda leaf, sharding: shape(leaf.shape, leaf.dtype, sharding=sharding),
    state,
    parallel.shardings(state, mesh, parallel.SAE_RULES),
  )
  rows = NamedSharding(mesh, P("data" if "data" in axes else None))
  x = shape(x.shape, x.dtype, sharding=rows)
  step = sweep.step_fn(recipe, mesh)
  text = step.lower(state, x, x, Knobs.of(recipe)).compile().as_text()
  found = []
  for match in re.finditer(rf" = (.*?) ({_KINDS})(-start)?\(", text):
    for dims in re.findall(r"\b[a-z]+\d*\[([\d,]*)\]", match[1]):
      sizes = [int(size) for size in dims.split(",") if size]
      found.append((match[2], tuple(size for size in sizes if size > 1)))
  return found


@pytest.mark.parametrize(
  ("family", "axes"),
  [
    ({}, {"model": 8}),
    ({}, {"data": 1, "model": 8}),
    ({}, {"data": 8, "model": 1}),
    ({}, {"data": 2, "model": 4}),
    ({"prefixes": (2**14,)}, {"data": 2, "model": 4}),
    ({"family": "gated"}, {"data": 2, "model": 4}),
    ({"family": "topk"}, {"data": 2, "model": 4}),
    ({"family": "batch_topk", "aux_coefficient": 0.1}, {"data": 2, "model": 4}),
  ],
)
def test_bytes_of_a_step_are_the_derived_ones(family, axes):
  recipe = Recipe(width=LATENTS, batch_size=ROWS, **family)
  sent = collectives(recipe, axes)
  assert {kind for kind, _ in sent} == {"all-reduce"}
  bytes_of = lambda shapes: sum(4 * math.prod(shape) for shape in shapes)
  matrices = [shape for _, shape in sent if len(shape) > 1]
  expected = costs.collective_bytes(
    recipe, WIDTH, WIDTH, axes.get("data", 1), axes.get("model", 1)
  )
  assert bytes_of(matrices) == sum(expected)
  vectors = [shape for _, shape in sent if len(shape) < 2]
  assert bytes_of(vectors) < 0.005 * sum(expected)
  assert all(math.prod(shape) <= LATENTS for shape in vectors)


def test_the_derivation_by_hand():
  recipe = Recipe(width=LATENTS, batch_size=ROWS)
  assert costs.collective_bytes(recipe, WIDTH, WIDTH, 1, 8) == (
    4 * 4096 * 3584,
    0,
  )
  assert costs.collective_bytes(recipe, WIDTH, WIDTH, 8, 1) == (
    0,
    4 * 2 * 2**17 * 3584,
  )
  assert costs.collective_bytes(recipe, WIDTH, WIDTH, 2, 4) == (
    4 * 2048 * 3584,
    4 * 2 * 2**15 * 3584,
  )
