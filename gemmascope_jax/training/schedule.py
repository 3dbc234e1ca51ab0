"""When a run logs and saves."""

from __future__ import annotations

import dataclasses

BEST_BY = ("fvu", "loss")


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When the loop logs and saves; it never changes what is learned.

  Attributes:
    log_every: steps between lines of metrics.
    checkpoint_every: steps between checkpoints.
    checkpoint_minutes: minutes after which one is made besides; 0: never.
    keep_checkpoints: how many of the latest stay on disk.
    keep_best: a metric, one of `BEST_BY`: the checkpoint at which it was lowest
      stays as well, by the batch of that step; "": none does.
    progress: show a progress bar.
  """

  log_every: int = 100
  checkpoint_every: int = 5_000
  checkpoint_minutes: float = 10.0
  keep_checkpoints: int = 2
  keep_best: str = ""
  progress: bool = True

  def __post_init__(self):
    for field in ("log_every", "checkpoint_every", "keep_checkpoints"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"train.{field} is {getattr(self, field)}; expected at least 1"
        )
    if not self.checkpoint_minutes >= 0:
      raise ValueError(
        f"train.checkpoint_minutes is {self.checkpoint_minutes}; it must not be"
        " negative (0: no checkpoints by time)"
      )
    if self.keep_best and self.keep_best not in BEST_BY:
      raise ValueError(
        f"train.keep_best is {self.keep_best!r}; expected one of"
        f" {', '.join(BEST_BY)}, or nothing"
      )
