"""What each node does to the metric, by gradient times change.

The indirect effect of a node a (a latent, or an SAE's error) is what the metric
changes by when a alone takes its value on the patch prompt. To first order

  IE(a) = (dm / da) . (a_patch - a_clean),

dm / da at the clean run (attribution patching), or its mean over n points
between the clean and the patch activation of a's site, the midpoints of n equal
steps (integrated gradients). With g the gradient at the site,

  IE(f_i) = (d_i . g) (f_i,patch - f_i,clean),   IE(e) = g . (e_patch - e_clean)

at each token; they add up to g . (x_patch - x_clean). (Marks et al., "Sparse
feature circuits", 2024, eqs. 2 to 4.) Gradients are those of the model itself:
an SAE spliced in with its error changes nothing downstream.

Letters: T tokens, D width of the site, M latents, C latents that are kept of
each token.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemmascope_jax.circuits.places import Metric, Place, run


class Effects(NamedTuple):
  """Of one place.

  Attributes:
    slope: float32 [T, D], g.
    latents: int32 [T, C], those of the largest effects; C = 0 without an SAE.
    effect: float32 [T, C].
    clean: float32 [T, C], f of the clean prompt.
    change: float32 [T, C], f_patch - f_clean.
    error: float32 [T], effect of the error.
    error_change: float32 [T, D], e_patch - e_clean.
    total: float32 [T], summed effects of all latents, kept or not.
  """

  slope: jax.Array
  latents: jax.Array
  effect: jax.Array
  clean: jax.Array
  change: jax.Array
  error: jax.Array
  error_change: jax.Array
  total: jax.Array


@functools.partial(jax.jit, static_argnums=0, static_argnames=("steps", "keep"))
def effects(
  config,
  params,
  tokens,
  place: Place,
  metric: Metric,
  *,
  steps: int,
  keep: int,
) -> Effects:
  """All effects at a place.

  Args:
    config: the architecture.
    params: all parameters.
    tokens: int [T], the clean prompt.
    place: with its SAE.
    metric: what is explained.
    steps: of integrated gradients; 0: the gradient at the clean run.
    keep: C at most; memory is T x C, never T x M.
  """

  def slope(share):
    value = lambda x: metric.of(
      config, params, run(config, params, tokens, place, x)
    )
    return jax.grad(value)(place.x + share * (place.patch - place.x))

  if steps:
    shares = (jnp.arange(steps) + 0.5) / steps
    add = lambda total, share: (total + slope(share), ())
    total, _ = jax.lax.scan(add, jnp.zeros_like(place.x), shares)
    g = total / steps
  else:
    g = slope(0.0)
  if place.sae is None:
    change = place.patch - place.x
    none = jnp.zeros((len(place.x), 0))
    return Effects(
      slope=g,
      latents=none.astype(jnp.int32),
      effect=none,
      clean=none,
      change=none,
      error=(g * change).sum(axis=1),
      error_change=change,
      total=jnp.zeros(len(place.x)),
    )
  w_dec = place.sae.params.w_dec

  def position(row):
    x, patch, kept, g = row
    f, change, error = place.parts(x, patch, kept)
    effect = jnp.matmul(w_dec, g, precision="highest") * change
    _, best = jax.lax.top_k(jnp.abs(effect), min(keep, len(effect)))
    return Effects(
      slope=g,
      latents=best.astype(jnp.int32),
      effect=effect[best],
      clean=f[best],
      change=change[best],
      error=(g * error).sum(),
      error_change=error,
      total=effect.sum(),
    )

  return jax.lax.map(position, (place.x, place.patch, place.keep, g))


@functools.partial(jax.jit, static_argnums=0)
def ablated(
  config, params, tokens, place: Place, metric: Metric, moves, positions
) -> jax.Array:
  """What the metric really changes by, one node at a time.

  Args:
    config: the architecture.
    params: all parameters.
    tokens: int [T].
    place: where the nodes are.
    metric: what is explained.
    moves: float32 [J, D], what each node's change adds to the activation.
    positions: int [J], at which token.

  Returns:
    float32 [J].
  """

  def value(x):
    return metric.of(config, params, run(config, params, tokens, place, x))

  own = value(place.x)
  one = lambda node: value(place.x.at[node[1]].add(node[0])) - own
  return jax.lax.map(one, (moves, positions))
