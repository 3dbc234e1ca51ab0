"""The rivals of a comparison: each turns a strength into edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.steering import edits
from gemmascope_jax.steering.edits import Edit
from gemmascope_jax.steering.mean_difference import MeanDifference


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
  """One way to steer.

  Attributes:
    name: in results and figures.
    edits: strength -> {site: edit}.
    strengths: which to try, ascending and positive.
    about: what strength 1 is, for people.
  """

  name: str
  edits: Callable[[float], dict[str, Edit]]
  strengths: tuple[float, ...]
  about: str

  def __post_init__(self):
    ascending = list(self.strengths) == sorted(set(self.strengths))
    if not self.strengths or not ascending or self.strengths[0] <= 0:
      raise ValueError(
        f"strengths of {self.name} are {self.strengths}: expected numbers above"
        " 0, ascending, each once (the model without edits is always compared)"
      )


def adding(
  sae: SAE, latent: int, unit: float, strengths: Sequence[float]
) -> Method:
  """Adds the latent's direction; `unit` is its typical maximum."""
  return Method(
    "add",
    lambda s: {
      edits.site_of(sae): edits.add(sae, latent, s, unit=unit),
    },
    tuple(strengths),
    f"latent {latent}'s decoder row times its typical maximum, {unit:.4g}",
  )


def clamping(
  sae: SAE, latent: int, unit: float, strengths: Sequence[float]
) -> Method:
  """Sets the latent to a value at every token, and keeps the error term."""
  return Method(
    "clamp",
    lambda s: {
      edits.site_of(sae): edits.clamp(sae, latent, s, unit=unit),
    },
    tuple(strengths),
    f"latent {latent} set to its typical maximum, {unit:.4g}",
  )


def mean_differences(
  found: MeanDifference, strengths: Sequence[float]
) -> Method:
  """Adds a mean difference of texts."""
  return Method(
    "mean difference",
    lambda s: {found.site: edits.direction(found.vector, s)},
    tuple(strengths),
    f"mean of {found.positive} texts less that of {found.negative}, of norm"
    f" {found.norm:.4g} (chance alone: {found.noise:.3g})",
  )


def random_direction(
  site: str, width: int, norm: float, seed: int, strengths: Sequence[float]
) -> Method:
  """Adds a direction that means nothing: what any push of that size does."""
  drawn = np.random.default_rng(seed).normal(size=width)
  vector = drawn * (norm / np.linalg.norm(drawn))
  return Method(
    "random direction",
    lambda s: {site: edits.direction(vector, s)},
    tuple(strengths),
    f"a random direction of norm {norm:.4g} (seed {seed})",
  )
