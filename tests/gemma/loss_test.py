"""The chunked loss against a direct computation in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma

CONFIG = dataclasses.replace(
  gemma.preset("gemma-2-2b"),
  name="tiny",
  vocab_size=90,
  width=12,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  mlp_width=16,
  window=4,
  final_softcap=5.0,
)


def _case(vocabulary=90, softcap=5.0, size=2.0):
  rng = np.random.default_rng(3)
  config = dataclasses.replace(
    CONFIG, vocab_size=vocabulary, final_softcap=softcap
  )
  params = {
    "embedder": {
      "embedding": rng.normal(size=(vocabulary, 12)).astype(np.float32)
    },
    "final_norm": {"scale": rng.normal(size=12).astype(np.float32)},
  }
  residual = (size * rng.normal(size=(2, 7, 12))).astype(np.float32)
  targets = rng.integers(0, vocabulary, (2, 7))
  return config, params, residual, targets


def _direct(config, params, residual, targets, weights):
  """Losses and the gradients of their weighted sum, by torch in float64."""
  import torch

  table, scale, x = (
    torch.tensor(np.float64(a), requires_grad=True)
    for a in (
      params["embedder"]["embedding"],
      params["final_norm"]["scale"],
      residual,
    )
  )
  y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.norm_eps)
  logits = (y * (1 + scale)) @ table.T
  if config.final_softcap is not None:
    logits = config.final_softcap * torch.tanh(logits / config.final_softcap)
  losses = torch.nn.functional.cross_entropy(
    logits.reshape(-1, config.vocab_size),
    torch.tensor(targets).reshape(-1),
    reduction="none",
  ).reshape(targets.shape)
  (losses * torch.tensor(weights)).sum().backward()
  return losses.detach().numpy(), {
    "residual": x.grad.numpy(),
    "table": table.grad.numpy(),
    "scale": scale.grad.numpy(),
  }


# 90 words are 15 parts of 6 rows, 4 and then 2 of them at a time with chunks
# of 64 words; 83 is prime.
@pytest.mark.parametrize(
  ("vocabulary", "softcap", "chunk"),
  [
    (90, 5.0, 1),
    (90, None, 64),
    (90, 5.0, 64),
    (83, 5.0, 32),
    (83, None, 10_000),
  ],
)
def test_losses_and_gradients_equal_float64(vocabulary, softcap, chunk):
  config, params, residual, targets = _case(vocabulary, softcap)
  weights = np.random.default_rng(4).normal(size=targets.shape)
  losses, gradients = _direct(config, params, residual, targets, weights)

  def total(params, residual):
    found = gemma.token_losses(config, params, residual, targets, chunk=chunk)
    return jnp.sum(found * weights.astype(np.float32)), found

  (_, found), (by_params, by_residual) = jax.jit(
    jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
  )(params, residual)
  np.testing.assert_allclose(found, losses, rtol=2e-6, atol=2e-6)
  for ours, theirs in (
    (by_residual, gradients["residual"]),
    (by_params["embedder"]["embedding"], gradients["table"]),
    (by_params["final_norm"]["scale"], gradients["scale"]),
  ):
    np.testing.assert_allclose(
      ours, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max()
    )


def test_large_logits_do_not_overflow():
  config, params, residual, targets = _case(softcap=None)
  params["final_norm"]["scale"] = 100 * params["final_norm"]["scale"]
  losses, _ = _direct(config, params, residual, targets, np.ones((2, 7)))
  assert losses.max() > 200  # exp of it is no float32
  found = gemma.token_losses(config, params, residual, targets, chunk=16)
  np.testing.assert_allclose(found, losses, rtol=1e-5, atol=1e-4)


def test_next_token_losses_equal_the_logits():
  params = gemma.init(CONFIG, jax.random.key(0))
  tokens = np.random.default_rng(5).integers(0, 90, (3, 9))
  logits, found = jax.jit(
    lambda params, tokens: (
      gemma.forward(CONFIG, params, tokens).logits[:, :-1],
      gemma.next_token_losses(CONFIG, params, tokens, chunk=20),
    )
  )(params, tokens)
  expected = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), tokens[:, 1:, None], axis=2
  )
  assert found.shape == (3, 8) and found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected[..., 0], rtol=1e-5)


def test_next_token_losses_pass_edits_mask_and_start_on():
  params = gemma.init(CONFIG, jax.random.key(0))
  tokens = np.random.default_rng(5).integers(0, 90, (3, 9))
  mask = np.arange(9)[None] >= np.array([[0], [2], [3]])
  edits = {"mlp.1": lambda x: 2.0 * x}

  @jax.jit
  def losses(params):
    run = functools.partial(gemma.forward, CONFIG, params, tokens, mask=mask)
    residual = run(edits=edits).residual[:, :-1]
    before = run(num_layers=1).residual
    loss = functools.partial(gemma.next_token_losses, CONFIG, params, tokens)
    return (
      gemma.token_losses(CONFIG, params, residual, tokens[:, 1:]),
      loss(edits=edits, mask=mask),
      loss(edits=edits, mask=mask, start=(1, before)),
      loss(),
    )

  expected, found, started, plain = losses(params)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_allclose(started, expected, rtol=1e-6)
  assert np.abs(plain - found).max() > 1e-4


def test_bfloat16_is_accumulated_in_float32():
  config, params, residual, targets = _case()
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  residual = residual.astype(jnp.bfloat16)
  found = gemma.token_losses(config, half, residual, targets, chunk=30)
  losses, _ = _direct(
    config,
    jax.tree.map(np.float64, half),
    np.float64(residual),
    targets,
    np.ones((2, 7)),
  )
  assert found.dtype == jnp.float32
  # One rounding of the normalised stream, 2^-9 of logits of up to 15.
  np.testing.assert_allclose(found, losses, atol=0.05)


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_stays_far_below_the_logits(gradient):
  vocabulary, tokens, width = 2**18, 1024, 16
  config = dataclasses.replace(CONFIG, vocab_size=vocabulary, width=width)
  params = {
    "embedder": {
      "embedding": jax.ShapeDtypeStruct((vocabulary, width), jnp.float32)
    },
    "final_norm": {"scale": jax.ShapeDtypeStruct((width,), jnp.float32)},
  }

  def total(residual, params, targets):
    return gemma.token_losses(config, params, residual, targets).sum()

  function = jax.grad(total) if gradient else total
  compiled = (
    jax.jit(function)
    .lower(
      jax.ShapeDtypeStruct((4, tokens // 4, width), jnp.float32),
      params,
      jax.ShapeDtypeStruct((4, tokens // 4), jnp.int32),
    )
    .compile()
  )
  logits = tokens * vocabulary * 4
  assert compiled.memory_analysis().temp_size_in_bytes < logits / 30


def test_a_target_outside_the_vocabulary_gives_nan():
  config, params, residual, targets = _case()
  targets[1, 2] = config.vocab_size
  found = np.asarray(gemma.token_losses(config, params, residual, targets))
  assert np.isnan(found[1, 2]) and np.isnan(found).sum() == 1


def test_targets_of_another_shape():
  config, params, residual, targets = _case()
  with pytest.raises(ValueError, match=r"residual of shape \(2, 7, 12\) for"):
    gemma.token_losses(config, params, residual, targets[:, 1:])


def test_chunk_of_no_words():
  config, params, residual, targets = _case()
  with pytest.raises(ValueError, match="chunk = 0"):
    gemma.token_losses(config, params, residual, targets, chunk=0)


@pytest.mark.parametrize("softcap", [True, False])
@pytest.mark.parametrize(
  ("vocabulary", "cap", "chunk"), [(90, 5.0, 64), (83, 5.0, 10), (90, None, 7)]
)
def test_centred_logits_equal_torch(softcap, vocabulary, cap, chunk):
  import torch

  config, params, residual, targets = _case(vocabulary, cap)
  weights = np.random.default_rng(4).normal(size=targets.shape)
  table, scale, x = (
    torch.tensor(np.float64(a), requires_grad=True)
    for a in (
      params["embedder"]["embedding"],
      params["final_norm"]["scale"],
      residual,
    )
  )
  y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.norm_eps)
  logits = (y * (1 + scale)) @ table.T
  if softcap and cap is not None:
    logits = cap * torch.tanh(logits / cap)
  right = logits.gather(2, torch.tensor(targets)[..., None])[..., 0]
  centred = right - logits.mean(-1)
  (centred * torch.tensor(weights)).sum().backward()

  def ours(params, residual):
    found = gemma.centred_logits(
      config, params, residual, targets, softcap=softcap, chunk=chunk
    )
    return (found * weights.astype(np.float32)).sum(), found

  slopes, found = jax.jit(jax.grad(ours, argnums=(0, 1), has_aux=True))(
    params, residual
  )
  np.testing.assert_allclose(found, centred.detach(), atol=3e-5, rtol=1e-5)
  for mine, theirs in (
    (slopes[1], x),
    (slopes[0]["embedder"]["embedding"], table),
    (slopes[0]["final_norm"]["scale"], scale),
  ):
    np.testing.assert_allclose(mine, theirs.grad, atol=3e-5, rtol=1e-4)


def test_centred_logits_refuse_what_does_not_fit():
  config, params, residual, targets = _case()
  with pytest.raises(ValueError, match="residual of shape .* for targets of"):
    gemma.centred_logits(config, params, residual, targets[:, 1:])
  with pytest.raises(ValueError, match="chunk = 0"):
    gemma.centred_logits(config, params, residual, targets, chunk=0)
