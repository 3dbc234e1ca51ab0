"""What a dense training step asks of one device of a mesh, by derivation.

A mesh splits latents over its "model" axis, of size m, and batch rows over its
"data" axis, of size d. A device holds M/m rows of every matrix and of its
moments, and B/d rows of the batch; it computes [B/d, M/m] codes. Then:

  decoding   each device has its own latents' share of the reconstruction
             [B/d, E]: the sum over m devices is all that the forward pass
             needs from others. Its gradient is the same on all of them.
  gradients  each device has its own rows' share of the gradients [M/m, D] and
             [M/m, E], to be summed over d devices. A sum over M/m latents more
             reaches b_dec, through the encoder.

Nothing else with two axes is ever sent; vectors and counts are.

Letters: B batch rows, D width of the input, E of the target, M latents.
"""

from __future__ import annotations

from typing import NamedTuple

from gemmascope_jax.sae.config import Recipe

_BYTES = 4  # float32


class Collectives(NamedTuple):
  """Bytes of the matrices that a device gives to all-reduces in one step.

  Attributes:
    reconstructions: [B/d, E], summed over latents' shares.
    gradients: [M/m, D] and [M/m, E], summed over rows' shares.
  """

  reconstructions: int
  gradients: int


def collective_bytes(
  recipe: Recipe, inputs: int, outputs: int, data: int = 1, model: int = 1
) -> Collectives:
  """What devices tell each other in one step.

  A family that decodes several times, see `decodings`, sums each
  reconstruction, and each of their gradients, by itself.

  Args:
    recipe: see `Recipe`.
    inputs: D.
    outputs: E.
    data: d, a divisor of B.
    model: m, a divisor of M.
  """
  rows, latents = recipe.batch_size // data, recipe.width // model
  times = decodings(recipe)
  gradients = latents * (inputs + times * outputs)
  if recipe.skip:
    gradients += inputs * outputs
  return Collectives(
    reconstructions=_BYTES * rows * outputs * times if model > 1 else 0,
    gradients=_BYTES * gradients if data > 1 else 0,
  )


def decodings(recipe: Recipe) -> int:
  """Products with the decoder in a step, forward.

  One for each nested dictionary; a Gated SAE decodes its gates besides, and
  AuxK the dead latents, once there are any.
  """
  nested = 1 + len(recipe.prefixes)
  gates = nested if recipe.family == "gated" else 0
  return nested + gates + bool(recipe.aux_coefficient)


def state_bytes(
  recipe: Recipe, inputs: int, outputs: int, model: int = 1
) -> int:
  """What a device keeps of a member: weights, and each of Adam's moments.

  Vectors are left out.
  """
  copies = 2 if recipe.adam_b1 == 0 else 3
  return copies * _BYTES * recipe.width // model * (inputs + outputs)


def peak_bytes(
  recipe: Recipe, inputs: int, outputs: int, data: int = 1, model: int = 1
) -> int:
  """What a device holds when a step of an SAE holds most; vectors left out.

  The state; the batch, and the reconstruction and its gradient; the gradient of
  one matrix, which its update uses up before there is the next; and four [B/d,
  M/m]: pre-activations, activations, the gradient of these, and the part of it
  inside the kernel window, whose sum over rows is the thresholds' gradient. (A
  compiler that sums while it computes can do without the last.)

  Args:
    recipe: of a family that decodes once.
    inputs: D.
    outputs: E.
    data: d.
    model: m.
  """
  rows, latents = recipe.batch_size // data, recipe.width // model
  numbers = rows * (inputs + 3 * outputs)
  numbers += latents * max(inputs, outputs) + 4 * rows * latents
  return state_bytes(recipe, inputs, outputs, model) + _BYTES * numbers
