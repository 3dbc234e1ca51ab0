"""What other projects call FVU, on the same reconstructions.

Numbers of different projects are compared all the time, and are seldom of the
same thing. Here is each convention that is in use, with what is wrong with it;
the first is the paper's, and the only one that this project reports elsewhere.
All are given as a share that is missed, so "variance explained" is 1 less it.

Letters: S sequences, T tokens, D width of the site, N batches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gemmascope_jax.studies.records import SiteRecord, SpliceRecord, masked_sum


@dataclasses.dataclass(frozen=True)
class Convention:
  """One way to say how much a reconstruction misses.

  Attributes:
    name: short.
    used_by: projects, and versions where that matters.
    formula: in words and symbols; e = x_hat - x.
    flaw: what it gets wrong; "" for the paper's.
    value: the number.
  """

  name: str
  used_by: str
  formula: str
  flaw: str
  value: float

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready form; a number that is not finite becomes None."""
    found = dataclasses.asdict(self)
    if not np.isfinite(self.value):
      found["value"] = None
    return found


def conventions(site: SiteRecord, spliced: SpliceRecord) -> list[Convention]:
  """Every convention's number for one reconstruction.

  Args:
    site: of all sequences, as `splice.run_batch` and `concatenate` leave it.
    spliced: of the same sequences.

  Returns:
    The paper's first.
  """
  width, count = len(site.shift), site.count.sum()
  kept = lambda values: masked_sum(values, site.keep).sum()
  squared = kept(spliced.squared_error)
  variance = site.variance().sum()
  norm = kept(site.norm)
  mean = site.shift + site.mean_shift()
  e, moved, moved_squared, product = spliced.moments.sum(axis=0) / count
  x, x_squared = site.mean_shift(), site.second.sum(axis=0) / count
  with np.errstate(divide="ignore", invalid="ignore"):
    covariance = product - moved * x
    correlation = covariance**2 / (
      (moved_squared - moved**2) * (x_squared - x**2)
    )
    by_token = lambda other: kept(spliced.squared_error / other) / count
    per_token = by_token(site.centred)
    normalised = by_token(site.norm)
    saebench = (squared / count) / (norm / count - (norm / count / width) ** 2)
  return [
    Convention(
      "FVU",
      "Gemma Scope; this project",
      "E|e|^2 / E|x - mean|^2, mean per dimension, over all tokens",
      "",
      squared / variance,
    ),
    Convention(
      "with special tokens",
      "evaluators that do not mask BOS",
      "the same, BOS and EOS counted too",
      "BOS, whose norm is tens of times larger, decides the number",
      _with_special(site, spliced),
    ),
    Convention(
      "by batch",
      "dictionary_learning, sparsify, Language-Model-SAEs",
      "the same in each batch about its own mean, then averaged",
      "depends on the size and order of batches",
      _by_batch(site, spliced),
    ),
    Convention(
      "residual variance",
      "dictionary_learning",
      "Var(e) / Var(x)",
      "a constant error costs nothing",
      (squared - count * np.square(e).sum()) / variance,
    ),
    Convention(
      "by token",
      "SAELens and SAEBench, legacy",
      "E[|e|^2 / |x - mean|^2], a ratio of each token",
      "tokens near the mean decide the number",
      per_token,
    ),
    Convention(
      "squared mean square",
      "SAEBench 0.6; SAELens up to 6.18",
      "E|e|^2 / (E|x|^2 - (mean_d E[x_d^2])^2)",
      "depends on the scale of activations; can be negative",
      saebench,
    ),
    Convention(
      "normalised MSE",
      "OpenAI's sparse_autoencoder",
      "E[|e|^2 / |x|^2], a ratio of each token",
      "the mean, which is easy, counts as explained",
      normalised,
    ),
    Convention(
      "scalar mean",
      "overcomplete",
      "E|e|^2 / E|x - m|^2, m one number for all dimensions",
      "the mean's direction counts as explained",
      squared / (norm - count * width * mean.mean() ** 2),
    ),
    Convention(
      "1 - correlation squared",
      "saex",
      "1 - mean_d corr(x_d, x_hat_d)^2",
      "a wrong scale or offset costs nothing; all dimensions count alike",
      1 - np.nanmean(correlation),
    ),
  ]


def _with_special(site: SiteRecord, spliced: SpliceRecord) -> float:
  real = site.keep | site.special
  mean = (site.first + site.first_special).sum(axis=0) / real.sum()
  variance = masked_sum(site.centred, real).sum()
  variance -= real.sum() * np.square(mean).sum()
  return masked_sum(spliced.squared_error, real).sum() / variance


def _by_batch(site: SiteRecord, spliced: SpliceRecord) -> float:
  size = -(-len(site.keep) // len(site.second))
  squared = masked_sum(spliced.squared_error, site.keep)
  second = masked_sum(site.centred, site.keep)
  found = []
  for start in range(0, len(squared), size):
    part = slice(start, start + size)
    count = site.count[part].sum()
    if count:
      mean = site.first[part].sum(axis=0) / count
      variance = second[part].sum() - count * np.square(mean).sum()
      found.append(squared[part].sum() / variance)
  return float(np.mean(found))
