"""Dtypes, precision, full size, devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma, parallel

CONFIG = dataclasses.replace(
  gemma.preset("gemma-2-2b"),
  name="tiny",
  vocab_size=96,
  width=24,
  num_layers=3,
  num_heads=8,
  num_kv_heads=4,
  head_dim=4,
  mlp_width=32,
  window=6,
)
TOKENS = np.random.default_rng(0).integers(0, 96, (4, 13))
TAPS = ("res.0", "mlp.1", "att.2", "mlp_in.2")


def _params(dtype=jnp.float32):
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), dtype), shapes
  )


def _run(params, tokens, **arguments):
  out = gemma.forward(CONFIG, params, tokens, taps=TAPS, **arguments)
  losses = gemma.token_losses(
    CONFIG, params, out.residual[:, :-1], tokens[:, 1:], chunk=32
  )
  return out, losses


def test_bfloat16_is_near_float32():
  half = _params(jnp.bfloat16)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  found, losses = jax.jit(_run)(half, TOKENS)
  expected, exact_losses = jax.jit(_run)(exact, TOKENS)
  assert found.residual.dtype == jnp.bfloat16
  assert all(act.dtype == jnp.bfloat16 for act in found.acts.values())
  assert found.logits.dtype == losses.dtype == jnp.float32
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    error = jnp.linalg.norm(ours.astype(jnp.float32) - theirs)
    assert error < 0.02 * jnp.linalg.norm(theirs)
  np.testing.assert_allclose(losses, exact_losses, atol=0.1)


@pytest.mark.parametrize(
  ("name", "multiplier"),
  [("gemma-2-2b", 48.0), ("gemma-2-9b", 59.75), ("gemma-2-27b", 68.0)],
)
def test_embedding_multiplier_is_rounded_to_bfloat16(name, multiplier):
  config = dataclasses.replace(gemma.preset(name), vocab_size=4)
  table = jnp.ones((4, config.width))
  for dtype, expected in (
    (jnp.bfloat16, multiplier),
    (jnp.float32, np.float32(config.width**0.5)),
  ):
    params = {"embedder": {"embedding": table.astype(dtype)}}
    out = gemma.forward(config, params, np.array([[1]]), num_layers=0)
    assert set(np.asarray(out.residual, np.float32).ravel()) == {expected}


@pytest.mark.parametrize("given", [None, "default"])
def test_every_product_has_the_precision_of_the_call(given):
  arguments = {} if given is None else {"precision": given}
  expected = jax.lax.Precision(given or "highest")
  shapes = jax.eval_shape(_params)

  def loss(params, tokens):
    return gemma.next_token_losses(
      CONFIG, params, tokens, chunk=32, **arguments
    ).sum()

  # The global default must not decide.
  with jax.default_matmul_precision("bfloat16"):
    text = str(jax.make_jaxpr(jax.grad(loss))(shapes, TOKENS))
  products = [
    line.split("precision=")[1] for line in text.split("dot_general[")[1:]
  ]
  assert len(products) > 3 * 9
  want = "HIGHEST" if expected == jax.lax.Precision.HIGHEST else "DEFAULT"
  assert all(want in product.split("]")[0] for product in products)


def test_a_token_outside_the_vocabulary_gives_nan():
  tokens = TOKENS.copy()
  tokens[1, 5] = CONFIG.vocab_size
  out = jax.jit(lambda p, t: gemma.forward(CONFIG, p, t).logits)(
    _params(), tokens
  )
  assert np.isnan(out[1, 5:]).all()
  assert np.isfinite(np.asarray(out)[[0, 2, 3]]).all()


@pytest.mark.parametrize(
  "axes", [{"data": 2, "model": 4}, {"model": 8}, {"data": 4}]
)
def test_equal_on_one_device_and_on_many(axes):
  mesh = parallel.make_mesh(axes)
  params = _params()
  mask = np.arange(13)[None] < np.array([[13], [9], [5], [12]])
  expected = jax.jit(_run)(params, TOKENS, mask=mask)
  rows = jax.sharding.PartitionSpec("data" if "data" in axes else None)
  put = lambda x: jax.device_put(x, jax.NamedSharding(mesh, rows))
  found = jax.jit(_run)(
    parallel.shard(params, mesh), put(TOKENS), mask=put(mask)
  )
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_a_mesh_never_gathers_parameters_or_logits():
  mesh = parallel.make_mesh({"data": 2, "model": 4})
  params = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    jax.eval_shape(_params),
    parallel.shardings(jax.eval_shape(_params), mesh),
  )
  rows = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  tokens = jax.ShapeDtypeStruct(TOKENS.shape, jnp.int32, sharding=rows)
  text = jax.jit(_run).lower(params, tokens).compile().as_text()
  # Sums after W_O, the down-projection and the embedding; nothing else moves.
  assert " all-reduce(" in text
  for other in ("all-gather", "all-to-all", "collective-permute"):
    assert f" {other}" not in text


@pytest.mark.slow
def test_gemma2_2b_with_its_loss_compiles_at_full_size():
  config = gemma.preset("gemma-2-2b")
  params = jax.eval_shape(lambda: gemma.init(config, jax.random.key(0)))
  tokens = jax.ShapeDtypeStruct((2, 512), jnp.int32)
  compiled = (
    jax.jit(lambda p, t: gemma.next_token_losses(config, p, t))
    .lower(params, tokens)
    .compile()
  )
  assert compiled.out_info.shape == (2, 511)
  memory = compiled.memory_analysis()
  parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert memory.argument_size_in_bytes >= 4 * parameters
  # No copy of a weight, and never the logits of all words.
  assert memory.temp_size_in_bytes < 0.2 * 2 * 512 * config.vocab_size * 4
