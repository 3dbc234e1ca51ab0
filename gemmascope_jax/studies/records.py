"""Per-sequence sums of one pass, and the metrics that follow from them.

The definitions are Gemma Scope's (section 4, 4.1), one each:

  L0          E ||f(x)||_0
  delta loss  E [CE(spliced) - CE(clean)], nats a token
  FVU         E ||x - x_hat||^2 / E ||x - mean(x)||^2, the mean per dimension,
              over all counted tokens of the evaluation

over the positions that the token policy keeps. Letters: S sequences, T tokens,
D width of the site.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gemmascope_jax.studies.estimate import Estimate, ratio


@dataclasses.dataclass
class SiteRecord:
  """What the site itself is like, per sequence; float64.

  Attributes:
    count: [S], kept tokens.
    first: [S, D], sum of x - shift.
    second: [S], sum of ||x - shift||^2.
    shift: [D], any vector near the mean: keeps the variance free of
      cancellation when the mean is large.
    loss_count: [S], positions whose loss counts.
    loss_clean: [S], sum of the unspliced model's losses there.
  """

  count: np.ndarray
  first: np.ndarray
  second: np.ndarray
  shift: np.ndarray
  loss_count: np.ndarray
  loss_clean: np.ndarray

  @classmethod
  def of(cls, x, keep, shift, losses, keep_loss) -> SiteRecord:
    """From one batch.

    Args:
      x: float32 [S, T, D], activations at the site.
      keep: bool [S, T].
      shift: float64 [D].
      losses: float32 [S, T - 1], of the unspliced model.
      keep_loss: bool [S, T - 1].
    """
    centred = np.asarray(x, np.float64) - shift[None, None, :]
    centred[~keep] = 0
    return cls(
      count=keep.sum(axis=1).astype(np.float64),
      first=centred.sum(axis=1),
      second=np.square(centred).sum(axis=(1, 2)),
      shift=shift,
      loss_count=keep_loss.sum(axis=1).astype(np.float64),
      loss_clean=masked_sum(losses, keep_loss),
    )

  def variance(self) -> np.ndarray:
    """[S]: each sequence's sum of ||x - mean||^2, the mean over all."""
    mean = self.first.sum(axis=0) / self.count.sum()
    return (
      self.second - 2 * self.first @ mean + self.count * np.square(mean).sum()
    )

  def clean(self) -> Estimate:
    """The unspliced model's loss, nats a token."""
    return ratio(self.loss_clean, self.loss_count)


@dataclasses.dataclass
class SpliceRecord:
  """What one replacement did, per sequence; float64 [S].

  Attributes:
    squared_error: sum of ||x - x_hat||^2 over kept tokens.
    active: sum of active latents; NaN where the replacement has none.
    loss: sum of the spliced model's losses.
  """

  squared_error: np.ndarray
  active: np.ndarray
  loss: np.ndarray

  def fvu(self, site: SiteRecord) -> Estimate:
    """Fraction of variance unexplained."""
    return ratio(self.squared_error, site.variance())

  def l0(self, site: SiteRecord) -> Estimate | None:
    """Active latents a token; None for a replacement without latents."""
    if np.isnan(self.active).any():
      return None
    return ratio(self.active, site.count)

  def loss_spliced(self, site: SiteRecord) -> Estimate:
    """The spliced model's loss, nats a token."""
    return ratio(self.loss, site.loss_count)

  def delta_loss(self, site: SiteRecord) -> Estimate:
    """Spliced minus clean loss, paired token by token."""
    return ratio(self.loss - site.loss_clean, site.loss_count)

  def loss_recovered(self, site: SiteRecord, zero: SpliceRecord) -> Estimate:
    """1 - delta / delta of zero ablation (Gated SAE paper, 2.3)."""
    share = ratio(zero.loss - self.loss, zero.loss - site.loss_clean)
    return share


def masked_sum(values, mask) -> np.ndarray:
  """[S] float64 sums over kept entries of [S, T]; others may be anything."""
  return np.where(mask, np.asarray(values, np.float64), 0).sum(axis=1)


def concatenate(records: list) -> SiteRecord | SpliceRecord:
  """Joins the records of successive batches, all of one kind and shift."""
  joined = {}
  for field in dataclasses.fields(records[0]):
    values = [getattr(record, field.name) for record in records]
    joined[field.name] = (
      values[0] if field.name == "shift" else np.concatenate(values)
    )
  return type(records[0])(**joined)
