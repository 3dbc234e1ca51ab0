"""Which latents of a wide SAE are new to a narrow one: SAE stitching.

After Leask et al., "Sparse autoencoders do not find canonical units of
analysis" (2025), a latent of a wide SAE is put into a narrow one. With e the
narrow SAE's error x - x_hat, f the wide latent's activation and d its decoder
row, the mean squared error then changes by

  E||e - f d||^2 - E||e||^2 = E[f^2] ||d||^2 - 2 E[f d . e],

of each latent alone, so one pass knows it of all of them. A latent whose
direction the narrow SAE has is *familiar*: its largest decoder cosine with a
narrow latent, its parent, is above 0.7, the value of that work. Theirs are also
the words novel (the error falls) and reconstruction (it does not); we divide
the latter, which is our choice:

  dead    does not fire on the rows;
  novel   the error falls: it reconstructs what the narrow SAE misses;
  split   the error does not fall, familiar, and so is another wide latent of
          the same parent: a specialised part of it;
  kept    the error does not fall, familiar, the only one of its parent: the
          narrow latent again;
  absent  the error does not fall and not familiar: what it fires on is
          reconstructed by the narrow SAE already, by other directions.

Letters: B rows of a block, D width of the site, M latents of the wide SAE,
G groups of windows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gemmascope_jax.studies.activity import Entries

FAMILIAR = 0.7
CLASSES = ("dead", "novel", "split", "kept", "absent")
_NUMBERS = 1 << 24  # of a product [latents, D] held at one time


@dataclasses.dataclass(frozen=True, eq=False)
class Insertions:
  """What inserting each wide latent alone does to the narrow SAE.

  Attributes:
    sums: float64 [G, M], change of the squared error, summed over rows.
    fired: int64 [G, M], rows on which the latent fires.
    rows: int64 [G].
  """

  sums: np.ndarray
  fired: np.ndarray
  rows: np.ndarray

  def change(self, weights: np.ndarray | None = None) -> np.ndarray:
    """float64 [M]: change of the mean squared error a row.

    Args:
      weights: float64 [G], of the groups; None: 1 each.
    """
    weights = np.ones(len(self.rows)) if weights is None else weights
    return weights @ self.sums / (weights @ self.rows)

  def stderr(self) -> np.ndarray:
    """float64 [M], of `change`, over groups; NaN with one group."""
    groups = len(self.rows)
    if groups < 2:
      return np.full(self.sums.shape[1], np.nan)
    rest = self.sums - self.change()[None] * self.rows[:, None]
    spread = groups / (groups - 1) * np.square(rest).sum(axis=0)
    return np.sqrt(spread) / self.rows.sum()


class Stitching:
  """Adds up insertions; see the module."""

  def __init__(self, w_dec: np.ndarray, groups: int):
    """Nothing inserted yet; `w_dec` [M, D] is the wide SAE's decoder."""
    self._w_dec = np.asarray(w_dec, np.float32)
    self._norms = np.square(self._w_dec.astype(np.float64)).sum(axis=1)
    self._sums = np.zeros((groups, len(w_dec)))
    self._fired = np.zeros((groups, len(w_dec)), np.int64)
    self._rows = np.zeros(groups, np.int64)

  def add(self, entries: Entries, error: np.ndarray, group: int) -> None:
    """Adds a block.

    Args:
      entries: the wide SAE's.
      error: float32 [B, D], x - x_hat of the narrow SAE.
      group: of the block.
    """
    latents, width = self._w_dec.shape
    values = entries.values.astype(np.float64)
    squares = np.bincount(entries.latents, values**2, latents)
    change = squares * self._norms
    code = entries.by_latent(len(error))
    step = max(_NUMBERS // width, 1)
    for start in range(0, latents, step):
      some = slice(start, min(start + step, latents))
      along = code[some] @ error
      change[some] -= 2 * np.einsum("md,md->m", along, self._w_dec[some])
    self._sums[group] += change
    self._fired[group] += np.diff(entries.starts)
    self._rows[group] += len(error)

  def finish(self) -> Insertions:
    """What was added up."""
    return Insertions(self._sums, self._fired, self._rows)


def classify(
  change: np.ndarray,
  fires: np.ndarray,
  cosine: np.ndarray,
  parent: np.ndarray,
  familiar: float = FAMILIAR,
) -> np.ndarray:
  """The class of each wide latent: int64 [M], an index into `CLASSES`.

  Args:
    change: float64 [M], see `Insertions.change`.
    fires: bool [M].
    cosine: float [M], the largest with a narrow latent.
    parent: int [M], that latent.
    familiar: cosine above which it is familiar.
  """
  known = fires & (cosine > familiar)
  siblings = np.bincount(parent[known], minlength=parent.max(initial=0) + 1)
  several = siblings[parent] > 1
  return np.select(
    [~fires, change < 0, known & several, known],
    [CLASSES.index(name) for name in ("dead", "novel", "split", "kept")],
    CLASSES.index("absent"),
  )
