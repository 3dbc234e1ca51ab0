"""Every number of an SAE's training recipe, with the paper's value as default.

Sources: GS = Gemma Scope (2408.05147), section in brackets; GS2 = Gemma Scope 2,
its technical report; Gao = Gao et al. (2406.04093); Rajamanoharan = the Gated
SAE paper (2404.16014).
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

from gemmascope_jax.sae.precision import PRECISIONS

FAMILIES = ("jumprelu", "gated", "topk", "batch_topk", "relu")
# Recipe fields that a compiled step takes as numbers, not as constants: members
# that differ in nothing else share it.
KNOBS = ("sparsity_coefficient", "target_l0", "learning_rate")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How one SAE is trained; frozen and hashable, so it can be a static arg.

  Attributes:
    family: architecture; see `FAMILIES`.
    width: number of latents M (GS Table 1: 2^14 .. 2^20).
    seed: of the initial weights.
    sparsity_coefficient: lambda of eq. 4. The paper names 6e-4 and 1e-3 and
      sweeps the rest.
    sparsity_loss: "l0": lambda L0 (GS eq. 4); "l0_target": the quadratic
      penalty of GS2 (eq. 5) on the distance from `target_l0`, see
      `families.sparsity.penalty`.
    target_l0: L0* of "l0_target".
    frequency_coefficient: weight of GS2's penalty on latents that fire often,
      see `families.sparsity.frequency_penalty`; 0: none, as in GS.
    frequency_scale: the firing rate from which that penalty is strong.
    k: latents a row that TopK keeps, on average that BatchTopK does.
    aux_k: dead latents that AuxK makes explain the error (Gao: 512).
    aux_coefficient: weight of AuxK's loss (Gao: 1/32); 0: none.
    dead_after_rows: a latent that has not fired for so many rows is dead.
    gated_loss: "ri_l1" (needs no resampling) or "original" (L1).
    prefixes: Matryoshka: widths of nested dictionaries, besides the whole one,
      each of which reconstructs alone (GS2 3.3); (): one dictionary.
    skip: adds x W_skip to the reconstruction: a skip transcoder (GS2).
    encoder_init: "transpose" of the decoder (GS 3.2), or "he_uniform" (GS
      appendix B: transcoders do not start at the transpose).
    threshold_parameter: "raw" or "log": what is trained is theta or log theta.
    frozen: parameters that are never updated, such as ("w_dec",) for a baseline
      with a random decoder.
    batch_size: activation rows a step (GS 3.2: 4,096).
    steps: optimizer steps (GS 3.1: 4B tokens at width 2^14 = 976,563 steps).
    learning_rate: GS 3.2: 7e-5 for every run.
    learning_rate_warmup_steps: GS 3.2: cosine-shaped over 1,000 steps ...
    learning_rate_warmup_start: ... from 0.1 of the learning rate.
    learning_rate_decay_share: share of the steps, at the end, over which the
      learning rate falls linearly to zero. GS mentions none: 0.
    bias_learning_rate_scale: multiplies the learning rate of b_enc, b_dec and
      the thresholds. GS: one rate for all: 1. These parameters live on the
      scale of the pre-activations, which Adam's fixed step size ignores, so a
      short run with a high learning rate needs a smaller one here.
    adam_b1: GS 3.2: 0 (no first moment is kept then).
    adam_b2: GS 3.2: 0.999.
    adam_eps: GS 3.2: 1e-8.
    sparsity_warmup_steps: GS 3.2: lambda rises linearly over 10,000 steps.
    bandwidth: GS 3.2 and footnote 5: 0.001, for inputs of unit mean square
      norm.
    threshold_init: GS 3.2: 0.001 for every latent ...
    threshold_init_l0: ... unless this is set: then each latent's threshold
      starts at the quantile of its own pre-activations (on the first batch)
      at which that many latents fire on an average row.
    start: a finished JumpReLU SAE of this width, a path as for `sae.load`, that
      training goes on from; "": none, and the settings of initial values count.
    bias_init: start of b_dec: "zeros" (GS 3.2) or "mean", the store's mean.
    pre_encoder_bias: GS 3.2: the encoder reads x - b_dec.
    centre_inputs: of a transcoder: the encoder reads x less its mean over the
      store, a constant that is folded away. An SAE has its pre-encoder bias for
      that. GS: no; but where the mean is most of x (96 % of E||x||^2 at
      mlp_in.5 of Gemma 3 270M) a short run spends itself on it.
    normalise: "rms" divides by C with E||x||^2 = C^2 (GS 3.1), a transcoder's
      targets by the inputs' C (GS appendix B); "each" those by their own C;
      "none" by 1. See `training.units`.
    matmul_precision: of the step's products, see `precision`; GS 3.3.2: 32-bit
      throughout: "highest".
    step: "dense": every product is over all latents; "sparse": all but the
      encoder's touch only latents that have a value or a gradient, with the
      same result to rounding; "auto": sparse where it is faster.
    capacity: latents a row that a sparse step has room for; a few rows may have
      more. Steps that need more room are dense. 0: from the expected L0.
  """

  family: str = "jumprelu"
  width: int = 2**14
  seed: int = 0
  sparsity_coefficient: float = 6e-4
  sparsity_loss: str = "l0"
  target_l0: float = 50.0
  frequency_coefficient: float = 0.0
  frequency_scale: float = 0.1
  k: int = 50
  aux_k: int = 512
  aux_coefficient: float = 0.0
  dead_after_rows: int = 10_000_000
  gated_loss: str = "ri_l1"
  prefixes: tuple[int, ...] = ()
  skip: bool = False
  encoder_init: str = "transpose"
  threshold_parameter: str = "raw"
  frozen: tuple[str, ...] = ()
  batch_size: int = 4096
  steps: int = 976_563
  learning_rate: float = 7e-5
  learning_rate_warmup_steps: int = 1_000
  learning_rate_warmup_start: float = 0.1
  learning_rate_decay_share: float = 0.0
  bias_learning_rate_scale: float = 1.0
  adam_b1: float = 0.0
  adam_b2: float = 0.999
  adam_eps: float = 1e-8
  sparsity_warmup_steps: int = 10_000
  bandwidth: float = 1e-3
  threshold_init: float = 1e-3
  threshold_init_l0: float | None = None
  start: str = ""
  bias_init: str = "zeros"
  pre_encoder_bias: bool = True
  centre_inputs: bool = False
  normalise: str = "rms"
  matmul_precision: str = "highest"
  step: str = "auto"
  capacity: int = 0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = _typed(field.name, getattr(self, field.name), field.default)
      object.__setattr__(self, field.name, value)
    for field, allowed in (
      ("family", FAMILIES),
      ("bias_init", ("zeros", "mean")),
      ("normalise", ("rms", "each", "none")),
      ("matmul_precision", PRECISIONS),
      ("sparsity_loss", ("l0", "l0_target")),
      ("gated_loss", ("ri_l1", "original")),
      ("encoder_init", ("transpose", "he_uniform")),
      ("threshold_parameter", ("raw", "log")),
      ("step", ("auto", "dense", "sparse")),
    ):
      if getattr(self, field) not in allowed:
        raise ValueError(
          f"recipe.{field} is {getattr(self, field)!r}; expected one of"
          f" {', '.join(allowed)}"
        )
    for field in (
      "width",
      "batch_size",
      "steps",
      "learning_rate",
      "target_l0",
      "frequency_scale",
      "k",
      "aux_k",
      "dead_after_rows",
    ):
      if not getattr(self, field) > 0:
        raise ValueError(
          f"recipe.{field} is {getattr(self, field)}; it must be positive"
        )
    for field in ("bandwidth", "threshold_init"):
      if not getattr(self, field) > 0:
        raise ValueError(
          f"recipe.{field} is {getattr(self, field)}; it must be positive"
          " (a rectangle kernel of no width trains no threshold)"
        )
    for field in (
      "sparsity_coefficient",
      "learning_rate_warmup_steps",
      "sparsity_warmup_steps",
      "bias_learning_rate_scale",
      "adam_eps",
      "frequency_coefficient",
      "aux_coefficient",
      "capacity",
    ):
      if not getattr(self, field) >= 0:
        raise ValueError(
          f"recipe.{field} is {getattr(self, field)}; it must not be negative"
        )
    for field, below_one in (
      ("adam_b1", True),
      ("adam_b2", True),
      ("learning_rate_decay_share", False),
      ("learning_rate_warmup_start", False),
    ):
      value = getattr(self, field)
      if not (0 <= value < 1 or (value == 1 and not below_one)):
        raise ValueError(
          f"recipe.{field} is {value}; expected a number from 0 to 1"
        )
    for field, readers in (
      ("sparsity_loss", ("jumprelu",)),
      ("frequency_coefficient", ("jumprelu",)),
      ("aux_coefficient", ("topk", "batch_topk")),
    ):
      value = getattr(self, field)
      if value != getattr(Recipe, field) and self.family not in readers:
        raise ValueError(
          f"recipe.{field} is {value!r}, which family {self.family!r} does not"
          f" read; leave it at {getattr(Recipe, field)!r}, or choose"
          f" {' or '.join(readers)}"
        )
    if self.start and self.family != "jumprelu":
      raise ValueError(
        f"recipe.start is {self.start!r}, but recipe.family {self.family!r}:"
        " only JumpReLU SAEs can be gone on with"
      )
    if self.family in ("topk", "batch_topk") and self.k > self.width:
      raise ValueError(
        f"recipe.k is {self.k}; expected at most the width, {self.width}"
      )
    if list(self.prefixes) != sorted(set(self.prefixes)) or not all(
      0 < prefix < self.width for prefix in self.prefixes
    ):
      raise ValueError(
        f"recipe.prefixes is {self.prefixes}; expected increasing widths below"
        f" {self.width}, without the whole one"
      )
    if self.sparsity_loss == "l0_target" and self.target_l0 >= self.width:
      raise ValueError(
        f"recipe.target_l0 is {self.target_l0}; expected less than the width,"
        f" {self.width}"
      )
    l0 = self.threshold_init_l0
    if l0 is not None and not 0 < l0 < self.width:
      raise ValueError(
        f"recipe.threshold_init_l0 is {l0}; expected a number between 0 and"
        f" the width, {self.width}"
      )

  @property
  def name(self) -> str:
    """Short name of the member in tables, logs and folders."""
    if self.family in ("topk", "batch_topk"):
      sparsity = f"k={self.k}"
    elif self.sparsity_loss == "l0_target":
      sparsity = f"L0={self.target_l0:g}"
    else:
      sparsity = f"lambda={self.sparsity_coefficient:g}"
    extra = " skip" if self.skip else ""
    if "w_dec" in self.frozen:
      extra += " random decoder"
    if self.start:
      extra += " continued"
    if self.seed:
      extra += f" seed={self.seed}"
    return f"{self.family} M={self.width} {sparsity}{extra}"

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> Recipe:
    """Builds a recipe, refusing keys that do not exist.

    Raises:
      ValueError: an unknown key; names it and the known ones.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
      raise ValueError(
        f"unknown recipe key {', '.join(unknown)}; known keys:"
        f" {', '.join(sorted(known))}"
      )
    return cls(**values)


# Of tuples: what they hold. None stands for a number that may be left out.
_ITEMS = {"prefixes": int, "frozen": str}
_EXPECTED = {
  int: "a whole number",
  float: "a finite number",
  bool: "True or False",
  str: "a text",
}


def _typed(name: str, value: Any, default: Any) -> Any:
  """The value as the plain Python type of its field, or an error.

  Raises:
    ValueError: a value of another type, or a number that is not finite.
  """
  if name in _ITEMS:
    if isinstance(value, (list, tuple)):
      return tuple(_plain(name, item, _ITEMS[name]) for item in value)
    example = "('w_dec',)" if _ITEMS[name] is str else "(64,)"
    raise ValueError(
      f"recipe.{name} is {value!r}; expected a tuple, as {example}"
    )
  if default is None:
    return None if value is None else _plain(name, value, float)
  return _plain(name, value, type(default))


def _plain(name: str, value: Any, kind: type) -> Any:
  accepted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
  fits = isinstance(value, accepted)
  if kind in (int, float):
    fits = fits and not isinstance(value, bool) and math.isfinite(value)
  if not fits:
    raise ValueError(f"recipe.{name} is {value!r}; expected {_EXPECTED[kind]}")
  # An int stays one where a float would do: nothing that is equal changes.
  return value if isinstance(value, (kind, int)) else kind(value)
