"""Which latents of a wide SAE belong to which of a narrow one.

By direction, the cosine of decoder rows; and by firing on the same rows, from
counts of rows on which both fire. Neither ever holds all pairs: cosines go by
blocks of wide latents, counts are products of sparse matrices by blocks of
narrow latents.

Letters: D width of the site, M1 narrow and M2 wide latents, K nearest, R rows,
P pairs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.activity import Entries, entries, sample

_PAIRS = 1 << 24  # of a block, dense


@dataclasses.dataclass(frozen=True, eq=False)
class Nearest:
  """Nearest directions.

  Attributes:
    cosine: float32 [M2], of each wide latent with its parent.
    parent: int64 [M2], the narrow latent with the largest cosine.
    children: int64 [M1, K], the nearest wide latents, nearest first.
    child_cosine: float32 [M1, K].
  """

  cosine: np.ndarray
  parent: np.ndarray
  children: np.ndarray
  child_cosine: np.ndarray


def nearest(narrow: np.ndarray, wide: np.ndarray, count: int = 4) -> Nearest:
  """Compares decoders.

  Args:
    narrow: float32 [M1, D].
    wide: float32 [M2, D].
    count: K; as many as there are, if there are fewer.
  """
  narrow, wide = _unit(narrow), _unit(wide)
  count = min(count, len(wide))
  cosine = np.empty(len(wide), np.float32)
  parent = np.empty(len(wide), np.int64)
  best = np.full((len(narrow), count), -np.inf, np.float32)
  which = np.zeros((len(narrow), count), np.int64)
  step = max(_PAIRS // len(narrow), 1)
  on_device = jnp.asarray(narrow)
  for start in range(0, len(wide), step):
    found = np.asarray(_cosines(on_device, jnp.asarray(wide[start:][:step])))
    some = slice(start, start + found.shape[1])
    parent[some] = found.argmax(axis=0)
    cosine[some] = found.max(axis=0)
    take = min(count, found.shape[1])
    top = np.argpartition(-found, take - 1, axis=1)[:, :take]
    values = np.concatenate([best, np.take_along_axis(found, top, 1)], 1)
    numbers = np.concatenate([which, top + start], 1)
    order = np.lexsort((numbers, -values), axis=1)[:, :count]
    best = np.take_along_axis(values, order, 1)
    which = np.take_along_axis(numbers, order, 1)
  return Nearest(cosine, parent, which, best)


@jax.jit
def _cosines(narrow, wide):
  return jnp.matmul(narrow, wide.T, precision="highest")


def null_cosines(
  narrow: np.ndarray, wide: np.ndarray, count: int = 4_096
) -> np.ndarray:
  """What chance gives: random directions of the wide decoder's covariance.

  Returns:
    float32 [count at most M2], largest cosines with narrow latents, of normal
    directions whose second moments are those of the wide SAE's unit rows.
  """
  wide = _unit(wide)
  rng = np.random.default_rng(0)
  count = min(count, len(wide))
  # Random sums of the rows: exactly their second moments, without a root.
  drawn = np.zeros((count, wide.shape[1]), np.float32)
  for start in range(0, len(wide), 4_096):
    part = wide[start : start + 4_096]
    drawn += rng.standard_normal((count, len(part)), np.float32) @ part
  return nearest(narrow, drawn, 1).cosine


def _unit(rows: np.ndarray) -> np.ndarray:
  rows = np.asarray(rows, np.float32)
  length = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.maximum(length, np.finfo(np.float32).tiny)


class Activity:
  """On which of the first rows latents fire, four bytes an active entry."""

  def __init__(self, width: int, rows: int):
    """Nothing seen yet; keeps at most `rows` rows."""
    self._width, self._left = width, rows
    self._indices: list[np.ndarray] = []
    self._lengths: list[np.ndarray] = []

  def add(self, entries: Entries, rows: int) -> None:
    """Adds a block of so many rows; blocks come in order."""
    kept = min(rows, self._left)
    if not kept:
      return
    code = entries.by_latent(rows).T.tocsr()[:kept]
    self._indices.append(code.indices)
    self._lengths.append(np.diff(code.indptr))
    self._left -= kept

  def matrix(self) -> scipy.sparse.csr_array:
    """[R, M] of ones."""
    lengths = np.concatenate(self._lengths)
    indices = np.concatenate(self._indices)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ones = np.ones(len(indices), np.int32)
    return scipy.sparse.csr_array(
      (ones, indices, starts.astype(np.int64)),
      shape=(len(lengths), self._width),
    )


def firing(
  sae: SAE, store, rows: int | None, label: str, progress: bool = True
) -> scipy.sparse.csr_array:
  """Ones [R, M] where latents fire, on the first rows of a store.

  Args:
    sae: of a site that the store holds.
    store: activations with their tokens.
    rows: R, at most; None: all.
    label: of the progress bar.
    progress: show it.
  """
  taken = sample.Sample.of(store, sae.config.site, rows)
  taken.require_saes({label: sae})
  activity = Activity(sae.width, taken.rows)
  on_device = entries.on_device(sae)
  for block in taken.blocks(f"{label} fires", progress=progress):
    activity.add(entries.active(on_device, block.x), len(block.x))
  return activity.matrix()


@dataclasses.dataclass(frozen=True, eq=False)
class Cofiring:
  """On how many rows pairs of latents fire together.

  Attributes:
    rows: R.
    narrow: int64 [M1], rows on which each narrow latent fires.
    wide: int64 [M2].
    joint: int64 [P], rows on which both of a pair fire.
    partner: int64 [M1], the wide latent with the largest Jaccard index; -1 if
      none ever fires with it.
    jaccard: float64 [M1], that index.
  """

  rows: int
  narrow: np.ndarray
  wide: np.ndarray
  joint: np.ndarray
  partner: np.ndarray
  jaccard: np.ndarray


def cofiring(
  narrow: scipy.sparse.csr_array,
  wide: scipy.sparse.csr_array,
  pairs: np.ndarray,
) -> Cofiring:
  """Counts rows on which latents fire together.

  Args:
    narrow: [R, M1] of ones, see `Activity`.
    wide: [R, M2] of ones, on the same rows.
    pairs: int64 [P, 2], (narrow, wide) latents to count.
  """
  rows, width = narrow.shape
  if wide.shape[0] != rows:
    raise ValueError(
      f"{rows} rows of the narrow SAE, {wide.shape[0]} of the wide: expected"
      " the same rows"
    )
  by_latent = narrow.T.tocsr()
  alone = np.diff(by_latent.indptr).astype(np.int64)
  other = np.bincount(wide.indices, minlength=wide.shape[1]).astype(np.int64)
  joint = np.zeros(len(pairs), np.int64)
  partner = np.full(width, -1, np.int64)
  jaccard = np.zeros(width)
  order = np.argsort(pairs[:, 0], kind="stable")
  ordered = pairs[order]
  step = max(_PAIRS // wide.shape[1], 1)
  for start in range(0, width, step):
    stop = min(start + step, width)
    counts = by_latent[start:stop] @ wide
    first, last = np.searchsorted(ordered[:, 0], (start, stop))
    if first < last:
      some = ordered[first:last]
      joint[order[first:last]] = counts[some[:, 0] - start, some[:, 1]]
    lengths = np.diff(counts.indptr)
    there = np.flatnonzero(lengths)
    if not len(there):
      continue
    own = np.repeat(np.arange(start, stop), lengths)
    either = alone[own] + other[counts.indices] - counts.data
    index = counts.data / either
    begins = counts.indptr[:-1][there]
    best = np.maximum.reduceat(index, begins)
    jaccard[start + there] = best
    # Of equal ones the lowest, whatever the order of the product's columns.
    equal = index == jaccard[own]
    number = np.where(equal, counts.indices, wide.shape[1])
    partner[start + there] = np.minimum.reduceat(number, begins)
  return Cofiring(rows, alone, other, joint, partner, jaccard)


def rates(found: Cofiring, pairs: np.ndarray) -> dict[str, np.ndarray]:
  """What the counts of pairs say; NaN where a latent never fires.

  Args:
    found: with the joint counts of `pairs`.
    pairs: int64 [P, 2].

  Returns:
    float64 [P] each: "wide_given_narrow", P(wide fires | narrow fires);
    "narrow_given_wide"; "jaccard", rows of both over rows of either; and "phi",
    the correlation of the two.
  """
  n, m = found.narrow[pairs[:, 0]], found.wide[pairs[:, 1]]
  n, m, both = (a.astype(np.float64) for a in (n, m, found.joint))
  rows = found.rows
  with np.errstate(invalid="ignore", divide="ignore"):
    scale = np.sqrt(n * (rows - n)) * np.sqrt(m * (rows - m))
    return {
      "wide_given_narrow": both / n,
      "narrow_given_wide": both / m,
      "jaccard": both / (n + m - both),
      "phi": (rows * both - n * m) / scale,
    }
