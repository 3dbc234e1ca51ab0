"""States in parts: the same numbers, on 1, 2, 4 or 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import parallel
from gemmascope_jax.sae import sweep, train_step
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.train_step import Knobs
from tests.sae.families import cases

WIDTH, ROWS, STEPS = 24, 32, 6
MESHES = [
  {"data": 1},
  {"model": 2},
  {"data": 2, "model": 2},
  {"model": 8},
  {"data": 8},
  {"data": 2, "model": 4},
]
COMMON = {
  "width": 96,
  "batch_size": ROWS,
  "learning_rate": 1e-2,
  "learning_rate_warmup_steps": 2,
  "sparsity_warmup_steps": 0,
  "sparsity_coefficient": 1e-2,
  "bandwidth": 0.1,
  "threshold_init": 0.05,
  "step": "dense",
}
FAMILIES = {
  "jumprelu": {"threshold_init_l0": 20.0},
  "matryoshka": {"prefixes": (7, 50)},
  "skip": {"skip": True, "encoder_init": "he_uniform", "adam_b1": 0.5},
  "gated": {"family": "gated"},
  "relu": {"family": "relu"},
  "topk": {"family": "topk", "k": 5, "aux_k": 4, "aux_coefficient": 0.1},
  "batch_topk": {
    "family": "batch_topk",
    "k": 5,
    "aux_k": 4,
    "aux_coefficient": 0.1,
    "dead_after_rows": ROWS,
  },
}


def begin(recipe, mesh):
  rows = cases.rows(1, rows=64, width=WIDTH)
  return sweep.init_fn(recipe, mesh)(jax.random.key(3), cases.sample(rows))


@functools.cache
def losses(name, axes):
  """The losses of a few steps; of the mesh with these axes, or without one."""
  recipe = Recipe(**COMMON | FAMILIES[name])
  mesh = parallel.make_mesh(dict(axes)) if axes else None
  state, found = begin(recipe, mesh), []
  for step in range(STEPS):
    x = jnp.asarray(cases.rows(10 + step, ROWS, WIDTH), jnp.float32)
    state, values = sweep.step_fn(recipe, mesh)(state, x, x, Knobs.of(recipe))
    found.append(float(values["loss"]))
  return np.array(found)


@pytest.mark.parametrize("name", ["jumprelu", "batch_topk"])
@pytest.mark.parametrize("axes", [MESHES[3], MESHES[5]])
def test_a_state_made_in_parts_has_the_numbers_of_one_device(name, axes):
  recipe = Recipe(**COMMON | FAMILIES[name])
  whole, split = begin(recipe, None), begin(recipe, parallel.make_mesh(axes))
  for one, other in zip(
    jax.tree.leaves(whole), jax.tree.leaves(split), strict=True
  ):
    np.testing.assert_allclose(other, one, rtol=2e-6, atol=1e-6)  # rounding


@pytest.mark.parametrize("name", ["jumprelu", "gated"])
def test_no_device_ever_holds_more_than_its_latents(name):
  recipe = Recipe(**COMMON | FAMILIES[name])
  mesh = parallel.make_mesh({"model": 8})
  state = begin(recipe, mesh)
  x = jnp.asarray(cases.rows(0, ROWS, WIDTH), jnp.float32)
  for _ in range(2):
    for tree in (state.params, state.opt_state.nu, vars(state)):
      for leaf in tree.values():
        if getattr(leaf, "shape", ())[:1] == (recipe.width,):
          held = {shard.data.size for shard in leaf.addressable_shards}
          assert held == {leaf.size // 8}
    state, _ = sweep.step_fn(recipe, mesh)(state, x, x, Knobs.of(recipe))


@pytest.mark.parametrize(
  ("name", "axes"),
  [("jumprelu", axes) for axes in MESHES]
  + [(name, MESHES[5]) for name in FAMILIES if name != "jumprelu"],
)
def test_any_mesh_gives_the_losses_of_one_device(name, axes):
  one = losses(name, ())
  found = losses(name, tuple(axes.items()))
  # Rounding decides which of two latents is the k-th largest.
  rounding = 2e-4 if "topk" in name else 2e-5
  np.testing.assert_allclose(found, one, rtol=rounding)


def test_init_at_full_size_sends_nothing_and_holds_little():
  """A 2^20-latent SAE of 9B, thresholds measured; shapes only."""
  recipe = Recipe(width=2**20, threshold_init_l0=50.0)
  shape = jax.ShapeDtypeStruct
  x, mean = shape((8192, 3584), jnp.float32), shape((3584,), jnp.float32)
  init = sweep.init_fn(recipe, parallel.make_mesh({"model": 8}))
  sample = train_step.Sample(x, x, mean, mean)
  compiled = init.lower(jax.random.key(0), sample).compile()
  matrix = 4 * 2**17 * 3584
  memory = compiled.memory_analysis()
  assert memory.output_size_in_bytes < 4.01 * matrix
  assert memory.temp_size_in_bytes < 1.5 * matrix
  assert "all-" not in compiled.as_text()


def test_sparse_steps_are_refused_on_a_mesh():
  recipe = Recipe(**COMMON | {"step": "sparse"})
  mesh = parallel.make_mesh({"model": 2})
  for build in (sweep.step_fn, sweep.init_fn):
    with pytest.raises(ValueError, match=r"'sparse', but a mesh, here .*: 2}"):
      build(recipe, mesh)
