"""The latents nearest to a latent: by direction, and by firing together.

Letters: M latents, C chosen ones, D width, R rows, K neighbours.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from gemmascope_jax.studies.width import matching

_PAIRS = 1 << 25  # counts that are held at one time


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
  """Nearest latents of some latents, nearest first.

  Attributes:
    latents: int64 [C, K]; -1 where there are no more.
    scores: float64 [C, K], cosine or Jaccard index; NaN there.
  """

  latents: np.ndarray
  scores: np.ndarray

  def of(self, place: int) -> list[list[float]]:
    """[[latent, score], ...] of the latent at a place, for JSON."""
    return [
      [int(latent), round(float(score), 4)]
      for latent, score in zip(
        self.latents[place], self.scores[place], strict=True
      )
      if latent >= 0
    ]


def by_direction(
  w_dec: np.ndarray, chosen: np.ndarray, alive: np.ndarray, count: int = 8
) -> Neighbours:
  """By the cosine of decoder rows.

  Args:
    w_dec: float32 [M, D].
    chosen: int64 [C], latents whose neighbours are wanted.
    alive: bool [M], latents that may be neighbours: those that fire. The rest
      point wherever they were started.
    count: K.
  """
  candidates = np.flatnonzero(alive)
  if not len(candidates) or not len(chosen):
    return _nobody(len(chosen), count)
  # One more, since a latent is nearest to itself.
  found = matching.nearest(w_dec[chosen], w_dec[candidates], count + 1)
  return _others(
    candidates[found.children],
    found.child_cosine.astype(np.float64),
    chosen,
    count,
  )


def by_firing(
  fires: scipy.sparse.csr_array, chosen: np.ndarray, count: int = 8
) -> Neighbours:
  """By the Jaccard index: rows on which both fire over those on which either.

  Args:
    fires: [R, M] of ones, see `matching.firing`.
    chosen: int64 [C], latents whose neighbours are wanted.
    count: K.
  """
  width = fires.shape[1]
  by_latent = fires.T.tocsr()
  alone = np.diff(by_latent.indptr).astype(np.int64)
  which = np.full((len(chosen), count + 1), -1, np.int64)
  scores = np.full((len(chosen), count + 1), np.nan)
  step = max(_PAIRS // width, 1)
  for start in range(0, len(chosen), step):
    some = chosen[start : start + step]
    joint = (by_latent[some] @ fires).tocsr()
    for place, latent in enumerate(some):
      first, last = joint.indptr[place : place + 2]
      others, both = joint.indices[first:last], joint.data[first:last]
      index = both / (alone[latent] + alone[others] - both)
      # Of equal ones the lowest, whatever the order of the product's columns.
      order = np.lexsort((others, -index))[: count + 1]
      which[start + place, : len(order)] = others[order]
      scores[start + place, : len(order)] = index[order]
  return _others(which, scores, chosen, count)


def _others(which, scores, chosen, count) -> Neighbours:
  """Takes each latent out of its own neighbours."""
  latents = np.full((len(chosen), count), -1, np.int64)
  values = np.full((len(chosen), count), np.nan)
  for place, latent in enumerate(chosen):
    keep = (which[place] != latent) & (which[place] >= 0)
    kept = which[place][keep][:count]
    latents[place, : len(kept)] = kept
    values[place, : len(kept)] = scores[place][keep][:count]
  return Neighbours(latents, values)


def _nobody(chosen: int, count: int) -> Neighbours:
  return Neighbours(
    np.full((chosen, count), -1, np.int64), np.full((chosen, count), np.nan)
  )
