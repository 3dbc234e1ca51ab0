"""What a node does through another one, by vector-Jacobian products.

The weight of an edge from node u to a later node d is the part of u's effect
that runs through d first,

  w(u, d) = (dm / dd) . (dd / du) . (u_patch - u_clean),

dm / dd with all that follows d, but dd / du along paths that meet no other
node: at every SAE's site between them the activation is held at its clean value
(a stop-gradient on its latents and on its error, both being nodes of their own;
Marks et al., 2024, eq. 5 and appendix A.1). So nothing is counted twice, and
with gradients at the clean run the edges out of a node, with the one straight
to the metric, add up to its effect:

  sum_d w(u, d) + w(u, m) = IE(u).

With integrated gradients dm / dd is their mean while dd / du is that of the
clean run, and the sum holds to first order only.

For a latent dd / dx is its encoder column where it is active, for an error
1 - d(SAE(x))/dx: both by automatic differentiation of the SAE, whatever its
family. One product goes back from each later node, for all earlier ones of a
place at once.

Letters: T tokens, D width of a site, J earlier nodes, K later nodes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from gemmascope_jax.circuits.places import Metric, Place, run

ERROR = -1  # stands where a latent's number would


@jax.jit
def cotangents(place: Place, slope, positions, latents) -> jax.Array:
  """(dm / dd) (dd / dx) of nodes d of one place.

  Args:
    place: with its SAE.
    slope: float32 [T, D], the metric's gradient there.
    positions: int [K].
    latents: int [K], `ERROR` for the error.

  Returns:
    float32 [K, D], with respect to the activation at the node's own token.
  """
  w_dec = place.sae.params.w_dec

  def one(node):
    position, latent = node
    x, keep, g = place.x[position], place.keep[position], slope[position]
    _, back = jax.vjp(lambda row: place.latents(row, keep), x)
    gains = jnp.matmul(w_dec, g, precision="highest")
    is_error = latent == ERROR
    own = jnp.arange(len(gains)) == latent
    (through,) = back(jnp.where(is_error, -gains, jnp.where(own, gains, 0)))
    return jnp.where(is_error, g, 0) + through

  return jax.lax.map(one, (positions, latents))


@functools.partial(jax.jit, static_argnums=(0, 1))
def between(
  config, target, params, tokens, place, frozen, later, at, moves, positions
) -> jax.Array:
  """Weights of all edges from nodes of one place to nodes of another.

  Args:
    config: the architecture.
    target: the later place's name.
    params: all parameters.
    tokens: int [T].
    place: the earlier one; its SAE is not used.
    frozen: activations [T, width] of the sites between them, by name.
    later: float32 [K, D], of `cotangents`.
    at: int [K], their tokens.
    moves: float32 [J, D], what each earlier node's change adds to x.
    positions: int [J], their tokens.

  Returns:
    float32 [K, J].
  """
  y, back = jax.vjp(
    lambda x: run(config, params, tokens, place, x, frozen, target), place.x
  )

  def one(node):
    vector, token = node
    (v,) = back(jnp.zeros_like(y).at[token].set(vector))
    return (v[positions] * moves).sum(axis=1)

  return jax.lax.map(one, (later, at))


@functools.partial(jax.jit, static_argnums=0)
def straight(
  config, params, tokens, place, frozen, metric: Metric, moves, positions
) -> jax.Array:
  """Weights [J] of the edges to the metric that meet no later node."""
  v = jax.grad(
    lambda x: metric.of(
      config, params, run(config, params, tokens, place, x, frozen)
    )
  )(place.x)
  return (v[positions] * moves).sum(axis=1)
