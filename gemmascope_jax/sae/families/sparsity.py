"""Penalties on how many latents fire, for families with a trained threshold.

Letters: B batch rows, M latents, [R, L] the shape of a code, see `code`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.families.dictionary import Batch


def penalty(recipe: Recipe, code, active: jax.Array, batch: Batch) -> jax.Array:
  """The sparsity term of the loss, a scalar.

  "l0": lambda L0 (Gemma Scope, eq. 4). "l0_target": Gemma Scope 2's quadratic
  penalty (eq. 5),

    lambda (L0 - L0*)^2 / (2 L0*),

  whose slope at L0 = 2 L0* is lambda, that of the linear penalty, as the report
  says of its own; the factor printed there, 2 / L0*, would make it 4 lambda.
  The report does not say whether L0 is a row's or the batch's mean; here it is
  the mean, because a row's would also punish rows for differing from each
  other, which no target for the average asks for.

  Args:
    recipe: see `Recipe`.
    code: `code.Dense` or `code.Sparse`.
    active: float32 [R, L] from `straight_through.step`.
    batch: see `dictionary.Batch`.
  """
  l0 = code.mean(active)
  if recipe.sparsity_loss == "l0_target":
    distance = l0 - batch.target_l0
    out = batch.sparsity_coefficient * distance**2 / (2 * batch.target_l0)
  else:
    out = batch.sparsity_coefficient * l0
  return out + frequency_penalty(recipe, code, active, batch)


def frequency_penalty(
  recipe: Recipe, code, active: jax.Array, batch: Batch
) -> jax.Array:
  """A penalty on latents that fire often, a scalar; 0 where there is none.

    coefficient * sum_i w_i^2 / w_0

  with w_i the share of the batch's rows on which latent i fires and w_0
  `frequency_scale`: the marginal price of firing is 2 w_i / w_0 times the
  coefficient, nothing for rare latents, and beyond w_0 more than twice it.
  Gemma Scope 2 has such a term but prints no formula; this is the quadratic
  part of the form that is quoted of its authors' earlier note.
  """
  if not recipe.frequency_coefficient:
    return jnp.float32(0)
  share = code.total(active) / len(batch.x)
  squares = jnp.square(share).sum()
  return recipe.frequency_coefficient * squares / recipe.frequency_scale
