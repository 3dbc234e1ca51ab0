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
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import gemma
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


@functools.partial(jax.jit, static_argnums=0)
def value(config, params, tokens, metric: Metric) -> jax.Array:
  """The metric, a scalar, of a prompt int [T]."""
  out = gemma.forward(config, params, tokens[None], logits=False)
  return metric.of(config, params, out.residual[0].astype(jnp.float32))


def slopes(
  config, params, tokens, places: Sequence[Place], metric: Metric, steps: int
) -> list[jax.Array]:
  """The metric's gradient g at each place.

  Args:
    config: the architecture.
    params: all parameters.
    tokens: int [T], the clean prompt.
    places: in the model's order.
    metric: what is explained.
    steps: of integrated gradients; 0: the gradient at the clean run, of all
      places by one pass.

  Returns:
    float32 [T, D] for each.
  """
  places = [place.bare() for place in places]
  if not steps:
    return _slopes(config, params, tokens, places, metric)
  return [
    _mean_slope(config, params, tokens, place, metric, steps)
    for place in places
  ]


def _moved(config, params, tokens, places, metric, moves):
  """The metric with something [T, D] added at each place."""
  embedded, *others = zip(places, moves, strict=True)
  edits = {
    place.name: lambda x, move=move: x + move[None] for place, move in others
  }
  out = gemma.forward(
    config,
    params,
    tokens[None],
    edits=edits,
    logits=False,
    start=(0, (embedded[0].x + embedded[1])[None]),
  )
  return metric.of(config, params, out.residual[0].astype(jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def _slopes(config, params, tokens, places, metric):
  value = functools.partial(_moved, config, params, tokens, places, metric)
  return jax.grad(value)([jnp.zeros_like(place.x) for place in places])


@functools.partial(jax.jit, static_argnums=(0, 5))
def _mean_slope(config, params, tokens, place, metric, steps):
  def slope(total, share):
    x = place.x + share * (place.patch - place.x)
    value = lambda x: metric.of(
      config, params, run(config, params, tokens, place, x)
    )
    return total + jax.grad(value)(x), ()

  shares = (jnp.arange(steps) + 0.5) / steps
  return jax.lax.scan(slope, jnp.zeros_like(place.x), shares)[0] / steps


@functools.partial(jax.jit, static_argnames="keep")
def effects(place: Place, g: jax.Array, *, keep: int) -> Effects:
  """All effects at a place.

  Args:
    place: with its SAE.
    g: float32 [T, D], the metric's gradient there.
    keep: C, at most M; memory is T x C, never T x M.
  """
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
    _, best = jax.lax.top_k(jnp.abs(effect), keep)
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


def ablated(
  config,
  params,
  tokens,
  places: Sequence[Place],
  metric: Metric,
  moves: Sequence[jax.Array],
  positions: Sequence[jax.Array],
) -> list[jax.Array]:
  """What the metric really changes by, one node at a time.

  Args:
    config: the architecture.
    params: all parameters.
    tokens: int [T].
    places: in the model's order.
    metric: what is explained.
    moves: of each place float32 [J, D], what each node's change adds to x.
    positions: of each place int [J], at which token.

  Returns:
    float32 [J] for each place.
  """
  widest = max(move.shape[1] for move in moves)
  padded = [
    jnp.pad(move, ((0, 0), (0, widest - move.shape[1]))) for move in moves
  ]
  counts = [len(move) for move in moves]
  where = np.repeat(np.arange(len(places)), counts)
  found = _ablated(
    config,
    params,
    tokens,
    [place.bare() for place in places],
    metric,
    (jnp.asarray(where), jnp.concatenate(padded), jnp.concatenate(positions)),
  )
  return jnp.split(found, np.cumsum(counts)[:-1])


@functools.partial(jax.jit, static_argnums=0)
def _ablated(config, params, tokens, places, metric, nodes):
  value = functools.partial(_moved, config, params, tokens, places, metric)
  still = [jnp.zeros_like(place.x) for place in places]

  def one(node):
    where, move, position = node
    return value(
      [
        zeros.at[position].add(
          jnp.where(where == number, move[: zeros.shape[1]], 0)
        )
        for number, zeros in enumerate(still)
      ]
    )

  return jax.lax.map(one, nodes) - value(still)
