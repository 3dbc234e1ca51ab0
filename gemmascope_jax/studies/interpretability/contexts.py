"""What a latent is judged on: contexts with its true activation at each token.

Letters: C contexts, T tokens in a context, L latents.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gemmascope_jax import artifacts


@dataclasses.dataclass(frozen=True, eq=False)
class Contexts:
  """Stretches of text and one latent's activations on them.

  Attributes:
    tokens: int32 [C, T].
    activations: float32 [C, T], not negative; 0 where `keep` is False.
    keep: bool [C, T], positions that count: those of the token policy.
  """

  tokens: np.ndarray
  activations: np.ndarray
  keep: np.ndarray

  def __post_init__(self):
    shapes = [x.shape for x in (self.tokens, self.activations, self.keep)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
      raise ValueError(
        "tokens, activations and keep of shapes"
        f" {', '.join(map(str, shapes))}: expected the same [contexts, tokens]"
      )
    if self.keep.dtype != bool or self.tokens.dtype.kind not in "iu":
      raise ValueError(
        f"tokens of dtype {self.tokens.dtype}, keep of {self.keep.dtype}:"
        " expected integers and bool"
      )
    counted = self.activations[self.keep]
    if not (np.isfinite(counted).all() and (counted >= 0).all()):
      raise ValueError(
        "activations that are negative or not finite: expected those of an"
        " SAE's latent, 0 where it does not fire"
      )

  def __len__(self) -> int:
    return len(self.tokens)

  def first(self, count: int) -> Contexts:
    """The first `count` contexts."""
    return Contexts(
      self.tokens[:count], self.activations[:count], self.keep[:count]
    )

  def peaks(self) -> np.ndarray:
    """float32 [C]: the strongest counted activation of each context."""
    shown = np.where(self.keep, self.activations, 0)
    return shown.max(axis=1, initial=0)

  def quantised(self, steps: int = 10) -> np.ndarray:
    """int [C, T]: activations from 0 to `steps`, the largest of all is that.

    What fires is at least 1, so that a weak activation is not shown as none.
    """
    shown = np.where(self.keep, self.activations, 0).astype(np.float64)
    largest = shown.max(initial=0)
    if largest <= 0:
      return np.zeros(shown.shape, int)
    levels = np.rint(shown / largest * steps).astype(int)
    return np.where(shown > 0, np.maximum(levels, 1), 0)

  def fingerprint(self) -> str:
    """Hex, of everything."""
    return artifacts.sha256_arrays([self.tokens, self.activations, self.keep])


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """One latent with the contexts to explain it and to test the explanation.

  Attributes:
    latent: its number in the SAE.
    frequency: share of tokens on which it fires.
    shown: its strongest contexts, for the explainer, strongest first.
    held_out: others, for the simulator.
    kinds: why each held-out context was chosen: "top", "quantile", "random".
  """

  latent: int
  frequency: float
  shown: Contexts
  held_out: Contexts
  kinds: tuple[str, ...]

  def __post_init__(self):
    if len(self.kinds) != len(self.held_out):
      raise ValueError(
        f"latent {self.latent}: {len(self.kinds)} kinds for"
        f" {len(self.held_out)} held-out contexts"
      )


@dataclasses.dataclass(frozen=True)
class Design:
  """How many latents and contexts, and of which kind.

  Half of the text, by windows, is for explanations and the other half is held
  out, so no held-out context was seen by the explainer.

  Attributes:
    latents: drawn at random among those that fire in enough contexts: in
      `explain` of the one half and in `top + quantile` of the other.
    length: T, tokens in a context.
    explain: strongest contexts that the explainer sees.
    top: strongest held-out contexts.
    quantile: held-out contexts drawn from as many equal parts of the ranking
      of those in which the latent fires.
    random: held-out contexts drawn from all, whether it fires there or not.
  """

  latents: int = 100
  length: int = 32
  explain: int = 10
  top: int = 5
  quantile: int = 5
  random: int = 10

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 1:
        raise ValueError(f"{name} {value}: expected at least 1")

  @property
  def kinds(self) -> tuple[str, ...]:
    """Of the held-out contexts, in order."""
    return (
      ("top",) * self.top
      + ("quantile",) * self.quantile
      + ("random",) * self.random
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Gathered:
  """The samples of one SAE.

  Attributes:
    samples: one a latent.
    width: latents of the SAE.
    alive: those that fire on the text at all.
    eligible: those that fire in enough contexts to be drawn.
    tokens: counted positions of the text.
  """

  samples: list[Sample]
  width: int
  alive: int
  eligible: int
  tokens: int
