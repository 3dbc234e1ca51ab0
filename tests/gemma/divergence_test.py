"""KL and losses of edited streams against whole logits in float64."""

import jax
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.gemma.divergence import divergence
from tests.gemma.loss_test import _case


def _log_probs(config, params, streams):
  """float64 [..., V]."""
  x = np.float64(streams)
  y = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.norm_eps)
  y = y * (1 + np.float64(params["final_norm"]["scale"]))
  logits = y @ np.float64(params["embedder"]["embedding"]).T
  if config.final_softcap is not None:
    logits = config.final_softcap * np.tanh(logits / config.final_softcap)
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize(
  ("words", "softcap", "chunk"),
  [(90, 5.0, 1), (90, None, 64), (83, 5.0, 32), (83, None, 10_000)],
)
def test_equal_whole_logits_in_float64(words, softcap, chunk):
  config, params, own, targets = _case(words, softcap)
  noise = np.random.default_rng(5).normal(size=(3, *own.shape))
  edited = (own + [[[[0.1]]], [[[1.0]]], [[[4.0]]]] * noise).astype(np.float32)
  found = jax.jit(
    lambda *streams: divergence(config, params, *streams, targets, chunk=chunk)
  )(own, edited)
  p, q = _log_probs(config, params, own), _log_probs(config, params, edited)
  kl = (np.exp(p) * (p - q)).sum(-1)
  np.testing.assert_allclose(found.kl, kl, rtol=1e-5, atol=1e-5)
  losses = -np.take_along_axis(
    q, np.broadcast_to(targets, (3, 2, 7))[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(found.losses, losses, rtol=1e-5, atol=1e-5)


def test_losses_are_those_of_token_losses():
  config, params, own, targets = _case()
  edited = np.stack([own + 1, own])
  found = divergence(config, params, own, edited, targets)
  streams, of_each = (own, *edited), (found.own_losses, *found.losses)
  for stream, losses in zip(streams, of_each, strict=True):
    expected = gemma.token_losses(config, params, stream, targets)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(found.kl[1]).max() < 1e-6  # nothing edited
  assert (found.kl[0] > 1e-3).all()


def test_streams_that_do_not_fit_are_refused():
  config, params, own, targets = _case()
  with pytest.raises(ValueError, match=r"edited streams of shape \(2, 7, 12\)"):
    divergence(config, params, own, own, targets)
  with pytest.raises(ValueError, match="residual of shape"):
    divergence(config, params, own[:1], own[None], targets)


def test_a_stream_is_the_same_bits_alone():
  config, params, own, targets = _case()
  edited = own + np.random.default_rng(1).normal(size=(3, *own.shape))
  edited = edited.astype(np.float32)
  run = jax.jit(lambda some: divergence(config, params, own, some, targets))
  together = run(edited)
  for number in range(3):
    own_losses, *alone = run(edited[number : number + 1])
    np.testing.assert_array_equal(own_losses, together.own_losses)
    for one, all_ in zip(alone, together[1:], strict=True):
      if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(one[0], all_[number])
      else:  # an H200 gave the last bit otherwise: products of another shape
        np.testing.assert_allclose(one[0], all_[number], rtol=1e-6)
