"""What a batch is to training: inputs and targets, each in units of its C.

Gemma Scope divides a site's activations by one number C, with E||x||^2 = C^2
(3.1). What that makes of a batch depends on what is trained on it:

  SAE         x = y = the rows / C
  transcoder  x = the input site's rows / C, y = the target's / C: both by the
              inputs' C (GS appendix B). `Recipe.normalise` "each" takes the
              targets' own C for y: the inputs' may leave E||y||^2 at thousands
              (2,800 after layer 5 of Gemma 3 270M), and lambda, which is
              weighed against the error in y, would mean another thing at every
              layer. With `Recipe.centre_inputs` x is less its mean
  crosscoder  x = y = the sites' rows side by side, each divided by its own C
              (Gemma Scope 2 normalises each layer separately): with K sites
              E||x||^2 = K, and none outweighs the others

Letters: B batch rows, D width of the input, E width of the target.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.data.streams.joint import JointStream
from gemmascope_jax.sae.config import Recipe

_LEAST_VARIANCE = 1e-12  # of E||y||^2: below it is rounding


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
  """The inputs and targets of a stream.

  Attributes:
    site: where inputs come from; of a crosscoder several, as in "res.5+res.9".
    target_site: where a transcoder's targets come from; None: targets are the
      inputs.
    parts: (site, width) of each of a crosscoder's sites; else empty.
    scale: C, which x is divided by; of a crosscoder float64 [D], each site's
      for its columns.
    target_scale: the same for y.
    centre: float64 [D], what is subtracted from a transcoder's inputs, in
      training units; None: nothing.
    x_mean: float64 [D], the inputs' mean in training units.
    y_mean: float64 [E], the targets'.
    y_variance: E||y - y_mean||^2.
  """

  site: str
  target_site: str | None
  parts: tuple[tuple[str, int], ...]
  scale: float | np.ndarray
  target_scale: float | np.ndarray
  centre: np.ndarray | None
  x_mean: np.ndarray
  y_mean: np.ndarray
  y_variance: float

  @classmethod
  def of(cls, stream, recipe: Recipe) -> Units:
    """Of a stream, see `data.streams`, for a recipe.

    Raises:
      ValueError: see `check`; or activations that are all zero or all the same.
    """
    streams, target_site, parts = (stream,), None, ()
    if isinstance(stream, JointStream):
      streams, target_site = stream.parts, stream.target_site
      if target_site is None:
        parts = tuple(zip(stream.sites, stream.widths, strict=True))
    check(recipe, target_site)
    scales = [math.sqrt(each.mean_square_norm) for each in streams]
    if recipe.normalise == "none":
      scales = [1.0] * len(streams)
    elif recipe.normalise == "rms" and target_site is not None:
      scales = [scales[0]] * len(streams)
    for each, scale in zip(streams, scales, strict=True):
      if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(
          f"the mean square norm of {each.site} is {each.mean_square_norm}:"
          " expected activations that are finite and not all zero; look at the"
          " store"
        )
    means, squares = [], []
    for each, scale in zip(streams, scales, strict=True):
      means.append(each.mean / scale)
      squares.append(each.mean_square_norm / scale**2)
    targets = slice(0 if target_site is None else 1, None)
    y_mean = np.concatenate(means[targets])
    y_variance = sum(squares[targets]) - float(np.square(y_mean).sum())
    if not y_variance > _LEAST_VARIANCE * sum(squares[targets]):
      raise ValueError(
        f"the activations of {target_site or stream.site} are all the same"
        f" (variance {y_variance:.3g} in training units): there is nothing to"
        " learn; look at the store"
      )
    x_mean = y_mean if target_site is None else means[0]
    centre = x_mean if recipe.centre_inputs else None
    by_column = np.repeat(scales, stream.widths) if parts else None
    return cls(
      site=stream.site,
      target_site=target_site,
      parts=parts,
      scale=by_column if parts else scales[0],
      target_scale=by_column if parts else scales[-1],
      centre=centre,
      x_mean=x_mean if centre is None else np.zeros_like(x_mean),
      y_mean=y_mean,
      y_variance=y_variance,
    )

  @property
  def scales(self) -> dict[str, float]:
    """C of each site, JSON-ready."""
    if not self.parts:
      found = {self.site: self.scale, self.target_site: self.target_scale}
      return {site: scale for site, scale in found.items() if site}
    ends = itertools.accumulate(width for _, width in self.parts)
    return {
      site: float(self.scale[end - 1])
      for (site, _), end in zip(self.parts, ends, strict=True)
    }

  def inputs_and_targets(self, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [B, D] and y [B, E] of a stream's batch; the same array for an SAE."""
    if self.target_site is None:
      scale = jnp.asarray(self.scale, jnp.float32)
      x = batch / (scale[None, :] if self.parts else scale)
      return x, x
    scales = jnp.float32(self.scale), jnp.float32(self.target_scale)
    centre = None
    if self.centre is not None:
      centre = jnp.asarray(self.centre, jnp.float32)
    return _split(batch, *scales, len(self.x_mean), centre)


@functools.partial(jax.jit, static_argnums=3)
def _split(batch, scale, target_scale, width, centre):
  x, y = batch[:, :width] / scale, batch[:, width:] / target_scale
  return x if centre is None else x - centre[None, :], y


def check(recipe: Recipe, target_site: str | None) -> None:
  """Refuses a recipe that makes no sense for what is trained.

  Raises:
    ValueError: names the setting and what it should be.
  """
  if target_site is None:
    if recipe.skip:
      raise ValueError(
        "recipe.skip is set, but a skip connection reconstructs its own input"
        " all by itself: leave it off, or train a transcoder (train.target_site)"
      )
    if recipe.centre_inputs:
      raise ValueError(
        "recipe.centre_inputs is set, which is for transcoders: an SAE's inputs"
        " are its targets; use recipe.pre_encoder_bias and recipe.bias_init"
        " 'mean'"
      )
    return
  for field, needed in (
    ("encoder_init", "he_uniform"),
    ("pre_encoder_bias", False),
  ):
    found = getattr(recipe, field)
    if found != needed:
      raise ValueError(
        f"recipe.{field} is {found!r}, but a transcoder (to {target_site}) reads"
        " and writes different spaces: expected"
        f" {needed!r} (Gemma Scope, appendix B)"
      )
