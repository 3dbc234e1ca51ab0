"""What one pass measures of every token, and the metrics that follow from it.

The definitions are Gemma Scope's (section 4, 4.1), one each:

  L0          E ||f(x)||_0
  delta loss  E [CE(spliced) - CE(clean)], nats a token
  FVU         E ||x - x_hat||^2 / E ||x - mean(x)||^2, the mean per dimension,
              over all counted tokens of the evaluation

over the positions that the token policy keeps. Numbers of each token are kept,
so that any part of the tokens (a position, a subset) can be looked at alone.
What other projects call by these names is in `compat`.

Letters: S sequences, T tokens, D width of the site, N batches.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gemmascope_jax.studies.estimate import Estimate, ratio


@dataclasses.dataclass
class SiteRecord:
  """What the site itself is like.

  Attributes:
    keep: bool [S, T], tokens that count.
    special: bool [S, T], real tokens that do not: BOS, EOS, a chat's prefix.
    keep_loss: bool [S, T - 1], positions whose loss counts.
    norm: float32 [S, T], ||x||^2.
    centred: float64 [S, T], ||x - shift||^2.
    first: float64 [S, D], sum of x - shift over tokens that count.
    first_special: float64 [S, D], the same over special ones.
    second: float64 [N, D], sum of (x - shift)^2 over a batch's that count.
    shift: float64 [D], any vector near the mean: keeps the variance free of
      cancellation when the mean is large.
    loss_clean: float32 [S, T - 1], losses of the unspliced model.
  """

  keep: np.ndarray
  special: np.ndarray
  keep_loss: np.ndarray
  norm: np.ndarray
  centred: np.ndarray
  first: np.ndarray
  first_special: np.ndarray
  second: np.ndarray
  shift: np.ndarray
  loss_clean: np.ndarray

  @classmethod
  def of(cls, x, keep, special, shift, losses, keep_loss) -> SiteRecord:
    """From one batch.

    Args:
      x: float32 [S, T, D], activations at the site.
      keep: bool [S, T].
      special: bool [S, T].
      shift: float64 [D].
      losses: float32 [S, T - 1], of the unspliced model.
      keep_loss: bool [S, T - 1].
    """
    x = np.asarray(x, np.float64)
    centred = x - shift[None, None, :]
    kept = np.where(keep[:, :, None], centred, 0)
    others = np.where(special[:, :, None], centred, 0)
    return cls(
      keep=keep,
      special=special,
      keep_loss=keep_loss,
      norm=np.square(x).sum(axis=2).astype(np.float32),
      centred=np.square(centred).sum(axis=2),
      first=kept.sum(axis=1),
      first_special=others.sum(axis=1),
      second=np.square(kept).sum(axis=(0, 1))[None],
      shift=shift,
      loss_clean=np.asarray(losses),
    )

  @property
  def count(self) -> np.ndarray:
    """float64 [S]: tokens that count."""
    return self.keep.sum(axis=1).astype(np.float64)

  @property
  def loss_count(self) -> np.ndarray:
    """float64 [S]: losses that count."""
    return self.keep_loss.sum(axis=1).astype(np.float64)

  def mean_shift(self) -> np.ndarray:
    """float64 [D]: mean over all counted tokens, less `shift`."""
    return self.first.sum(axis=0) / self.count.sum()

  def variance(self, about: np.ndarray | None = None) -> np.ndarray:
    """[S]: each sequence's sum of ||x - mean||^2, the mean over all.

    Args:
      about: float64 [D], another point than the mean.
    """
    mean = self.mean_shift() if about is None else about - self.shift
    second = masked_sum(self.centred, self.keep)
    return second - 2 * self.first @ mean + self.count * np.square(mean).sum()

  def clean(self) -> Estimate:
    """The unspliced model's loss, nats a token."""
    return ratio(masked_sum(self.loss_clean, self.keep_loss), self.loss_count)


@dataclasses.dataclass
class SpliceRecord:
  """What one replacement did; float32 but for `moments`.

  Attributes:
    squared_error: [S, T], ||x - x_hat||^2.
    active: [S, T], active latents; NaN where the replacement has none.
    norm: [S, T], ||x_hat||^2.
    dot: [S, T], x . x_hat.
    loss: [S, T - 1], losses of the spliced model.
    kl: [S, T - 1], KL(clean || spliced) of the next token, nats.
    moments: float64 [N, 4, D], sums over a batch's counted tokens of x_hat - x,
      of x_hat - shift, of its square, and of its product with x - shift.
  """

  squared_error: np.ndarray
  active: np.ndarray
  norm: np.ndarray
  dot: np.ndarray
  loss: np.ndarray
  kl: np.ndarray
  moments: np.ndarray

  def fvu(self, site: SiteRecord) -> Estimate:
    """Fraction of variance unexplained."""
    return ratio(masked_sum(self.squared_error, site.keep), site.variance())

  def l0(self, site: SiteRecord) -> Estimate | None:
    """Active latents a token; None for a replacement without latents."""
    if np.isnan(self.active).any():
      return None
    return ratio(masked_sum(self.active, site.keep), site.count)

  def loss_spliced(self, site: SiteRecord) -> Estimate:
    """The spliced model's loss, nats a token."""
    return ratio(self.losses(site), site.loss_count)

  def losses(self, site: SiteRecord) -> np.ndarray:
    """float64 [S]: each sequence's summed loss."""
    return masked_sum(self.loss, site.keep_loss)

  def rise(self, site: SiteRecord) -> np.ndarray:
    """float64 [S]: each sequence's summed rise of the loss."""
    rise = np.asarray(self.loss, np.float64) - site.loss_clean
    return masked_sum(rise, site.keep_loss)

  def delta_loss(self, site: SiteRecord) -> Estimate:
    """Spliced minus clean loss, paired token by token."""
    return ratio(self.rise(site), site.loss_count)

  def divergence(self, site: SiteRecord) -> Estimate:
    """KL of the spliced model's next-token distribution from the clean one's,
    nats a token."""
    return ratio(masked_sum(self.kl, site.keep_loss), site.loss_count)

  def loss_recovered(self, site: SiteRecord, ablated: SpliceRecord) -> Estimate:
    """1 - delta / delta of an ablation (Gated SAE paper, 2.3)."""
    return ratio(ablated.losses(site) - self.losses(site), ablated.rise(site))

  def cosine(self, site: SiteRecord) -> Estimate:
    """Mean cosine of x and x_hat; 0 where either is zero."""
    size = np.sqrt(np.asarray(site.norm, np.float64) * self.norm)
    cosine = np.divide(self.dot, size, out=np.zeros(size.shape), where=size > 0)
    return ratio(masked_sum(cosine, site.keep), site.count)

  def bias(self, site: SiteRecord) -> Estimate | None:
    """Relative reconstruction bias gamma = E||x_hat||^2 / E[x_hat . x] (Gated
    SAE paper, 4.2): below 1 reconstructions are shrunk. None where they are 0.
    """
    along = masked_sum(self.dot, site.keep)
    if not along.any():
      return None
    return ratio(masked_sum(self.norm, site.keep), along)


def masked_sum(values, mask) -> np.ndarray:
  """[S] float64 sums over kept entries of [S, T]; others may be anything."""
  return np.where(mask, np.asarray(values, np.float64), 0).sum(axis=1)


def take(record, rows) -> SiteRecord | SpliceRecord:
  """Some sequences' part of a record, without what is summed over batches.

  Args:
    record: a `SiteRecord` or `SpliceRecord`.
    rows: bool or int index of sequences.
  """
  kept = {
    field.name: getattr(record, field.name)[rows]
    for field in dataclasses.fields(record)
    if field.name not in ("shift", "second", "moments")
  }
  for name in ("second", "moments"):
    if hasattr(record, name):
      kept[name] = getattr(record, name)[:0]
  if hasattr(record, "shift"):
    kept["shift"] = record.shift
  return type(record)(**kept)


def concatenate(records: list) -> SiteRecord | SpliceRecord:
  """Joins the records of successive batches, all of one kind and shift."""
  joined = {}
  for field in dataclasses.fields(records[0]):
    values = [getattr(record, field.name) for record in records]
    joined[field.name] = (
      values[0] if field.name == "shift" else np.concatenate(values)
    )
  return type(records[0])(**joined)
