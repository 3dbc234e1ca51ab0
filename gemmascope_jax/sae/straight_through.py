"""JumpReLU and the L0 step with the paper's straight-through estimators.

Both functions are exact forwards; their derivatives with respect to the
threshold are zero almost everywhere, so the backward pass uses the rectangle
kernel K(u) = 1 for |u| < 1/2 of the JumpReLU paper (2407.14435, eqs. 11-12),
as Gemma Scope does (2408.05147, 2.2):

  d JumpReLU / d pre       = 1[pre > threshold]
  d JumpReLU / d threshold = -(threshold / bandwidth) K((pre - threshold) / bandwidth)
  d step     / d pre       = 0
  d step     / d threshold = -(1 / bandwidth) K((pre - threshold) / bandwidth)

The mean of these over a batch is a kernel density estimate, with that
bandwidth, of the derivative of the *expected* loss.

Letters: B batch rows; L latents of a row: all M of them, or the few of a line
of `code.Sparse`, where each has its own and so the thresholds have rows too.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def kernel_window(pre, threshold, bandwidth):
  """Where a pre-activation is close enough to train its threshold.

  Args:
    pre: float [B, L], pre-activations.
    threshold: float [1, L] or [B, L].
    bandwidth: width of the rectangle kernel, in units of `pre`.

  Returns:
    bool [B, L]: |pre - threshold| < bandwidth / 2.
  """
  return jnp.abs(pre - threshold) < bandwidth / 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def jumprelu(pre, threshold, bandwidth):
  """pre * 1[pre > threshold] (paper, eq. 3).

  Args:
    pre: float [B, L], pre-activations.
    threshold: float [1, L] or [B, L], positive.
    bandwidth: kernel bandwidth, a Python float.

  Returns:
    float [B, L], the latents' activations.
  """
  del bandwidth
  return jnp.where(pre > threshold, pre, 0)


def _jumprelu_forward(pre, threshold, bandwidth):
  return jumprelu(pre, threshold, bandwidth), (pre, threshold)


def _jumprelu_backward(bandwidth, residuals, cotangent):
  pre, threshold = residuals
  d_pre = jnp.where(pre > threshold, cotangent, 0)
  near = jnp.where(kernel_window(pre, threshold, bandwidth), cotangent, 0)
  d_threshold = -(threshold / bandwidth) * _summed(near, threshold)
  return d_pre, d_threshold


jumprelu.defvjp(_jumprelu_forward, _jumprelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def step(pre, threshold, bandwidth):
  """1[pre > threshold]: summed over latents it is the L0 of eq. 4.

  Args:
    pre: float [B, L], pre-activations.
    threshold: float [1, L] or [B, L].
    bandwidth: kernel bandwidth, a Python float.

  Returns:
    [B, L] of zeros and ones in `pre`'s dtype.
  """
  del bandwidth
  return (pre > threshold).astype(pre.dtype)


def _step_forward(pre, threshold, bandwidth):
  return step(pre, threshold, bandwidth), (pre, threshold)


def _step_backward(bandwidth, residuals, cotangent):
  pre, threshold = residuals
  near = jnp.where(kernel_window(pre, threshold, bandwidth), cotangent, 0)
  return jnp.zeros_like(pre), -(1 / bandwidth) * _summed(near, threshold)


step.defvjp(_step_forward, _step_backward)


def _summed(value, like):
  """The sum over rows that broadcasting `like` calls for."""
  if like.shape[0] == 1 and value.shape[0] != 1:
    return value.sum(axis=0, keepdims=True)
  return value
