"""Latents that go on from layer to layer: matching SAEs of adjacent layers.

The residual stream carries a direction on unchanged unless a layer changes it,
so a latent that persists should be written in the same direction by the next
layer's SAE, and fire on the same tokens. Latents i and j of two SAEs match by

* direction: their decoder rows are mutual nearest neighbours by cosine;
* firing: they are each other's best partner by the Jaccard index of the rows on
  which they fire, and the correlation phi of the two is what counts;
* both: the same pair does both.

Each pair must also score above a threshold, which is set by chance: by mutual
pairs found in the same way after the link between the layers is cut. Directions
are rotated at random, within the second decoder's own second moments (U' = U
C^-1/2 Q C^1/2, so that a few strong dimensions of the stream stay strong);
firing is shifted against the other SAE's by many rows. The threshold is the
least at which at most a share alpha of latents match in two such draws; the
false rate is what a third one gives.

SAEs that were started from the same seed have one more thing in common: latent
i of both began as the same random direction, and one that seldom fires stays
there, whatever the layers do. So pairs of the same number do not count, unless
they are asked for; between SAEs started apart that loses one pair in M.

Letters: M1, M2 latents of two SAEs that follow each other, D width, R rows, K
SAEs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from gemmascope_jax.studies.estimate import Estimate, ratio
from gemmascope_jax.studies.width import matching

DIRECTION, FIRING, BOTH = "direction", "firing", "both"
_CALIBRATING = 2  # draws of chance that set a threshold, before one to judge by
_LEAST_EIGENVALUE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Mutual pairs by one criterion.

  Attributes:
    partner: int64 [M1], the latent of the second SAE; -1: none.
    score: float64 [M1], cosine or phi; NaN without a partner.
  """

  partner: np.ndarray
  score: np.ndarray

  def above(self, threshold: float) -> np.ndarray:
    """int64 [M1]: partners of the pairs above a threshold."""
    # NaN is above nothing.
    return np.where(self.score > threshold, self.partner, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
  """What two SAEs have in common.

  Attributes:
    alive: bool [M1], latents of the first that could match.
    alive_second: bool [M2].
    pairs: by criterion, all mutual pairs, whatever their score.
    chance: by criterion, those of the draw that thresholds were not set by.
    thresholds: by criterion.
    partners: by criterion, int64 [M1], what matched; -1: nothing.
    false: by criterion, share of living latents that match by chance.
    same_number: by direction and by firing, pairs above the threshold that do
      not count as they have the same number in both SAEs.
  """

  alive: np.ndarray
  alive_second: np.ndarray
  pairs: dict[str, Pairs]
  chance: dict[str, Pairs]
  thresholds: dict[str, float]
  partners: dict[str, np.ndarray]
  false: dict[str, Estimate]
  same_number: dict[str, int]

  def share(self, criterion: str) -> Estimate:
    """Share of the first SAE's living latents that matched, its standard error
    over latents."""
    return _share(self.partners[criterion], self.alive)


def _share(partner, alive) -> Estimate:
  return ratio((partner >= 0) & alive, alive)


def match(
  first: np.ndarray,
  second: np.ndarray,
  firing: tuple[scipy.sparse.csr_array, scipy.sparse.csr_array] | None = None,
  *,
  alpha: float = 0.01,
  least: int = 10,
  seed: int = 0,
  same_number: bool = False,
) -> Matching:
  """Matches the latents of two SAEs.

  Args:
    first: float32 [M1, D], decoder of the earlier SAE.
    second: float32 [M2, D], of the later one.
    firing: ones [R, M1] and [R, M2] where latents fire, on the same rows; see
      `width.matching.Activity`. None: by direction alone.
    alpha: share of latents that may match by chance, by direction and by
      firing.
    least: rows on which a latent must fire to take part, if `firing` is given.
    seed: of the draws.
    same_number: whether pairs of the same number count; see the module.

  Returns:
    The matching.

  Raises:
    ValueError: decoders of different widths, firing of other SAEs or rows, no
      living latent, or a number out of range.
  """
  if first.shape[1] != second.shape[1]:
    raise ValueError(
      f"decoders of widths {first.shape[1]} and {second.shape[1]}: expected two"
      " that write into the same stream"
    )
  if not 0 < alpha < 1 or least < 1:
    raise ValueError(
      f"alpha {alpha}, least {least}: expected alpha between 0 and 1, and at"
      " least one row"
    )
  alive = [np.ones(len(rows), bool) for rows in (first, second)]
  if firing is not None:
    shapes = [matrix.shape for matrix in firing]
    rows = shapes[0][0]
    if shapes != [(rows, len(first)), (rows, len(second))]:
      raise ValueError(
        f"firing of shapes {shapes[0]} and {shapes[1]}: expected the same rows,"
        f" and {len(first)} and {len(second)} latents"
      )
    alive = [
      np.bincount(matrix.indices, minlength=matrix.shape[1]) >= least
      for matrix in firing
    ]
  if not (alive[0].any() and alive[1].any()):
    raise ValueError(
      f"no latent of one SAE fires on {least} rows: look at more rows"
    )
  rng = np.random.default_rng(seed)
  pairs = {DIRECTION: _by_direction(first, second, alive)}
  drawn = {
    DIRECTION: [
      _by_direction(first, _rotated(second, alive[1], rng), alive)
      for _ in range(_CALIBRATING + 1)
    ]
  }
  if firing is not None:
    pairs[FIRING] = _by_firing(*firing, alive)
    drawn[FIRING] = [
      _by_firing(firing[0], _shifted(firing[1], rng), alive)
      for _ in range(_CALIBRATING + 1)
    ]
  thresholds = {
    name: _threshold(each[:_CALIBRATING], alpha, int(alive[0].sum()))
    for name, each in drawn.items()
  }
  chance = {name: each[-1] for name, each in drawn.items()}
  same = dict.fromkeys(pairs, 0)
  if not same_number:
    same = {
      name: int((each.above(thresholds[name]) == _numbers(each)).sum())
      for name, each in pairs.items()
    }
    pairs, chance = (
      {name: _without_same(each) for name, each in found.items()}
      for found in (pairs, chance)
    )
  partners = _matched(pairs, thresholds)
  return Matching(
    *alive,
    pairs,
    chance,
    thresholds,
    partners,
    {
      name: _share(each, alive[0])
      for name, each in _matched(chance, thresholds).items()
    },
    same,
  )


def _numbers(pairs: Pairs) -> np.ndarray:
  return np.arange(len(pairs.partner))


def _without_same(pairs: Pairs) -> Pairs:
  same = pairs.partner == _numbers(pairs)
  return Pairs(
    np.where(same, -1, pairs.partner), np.where(same, np.nan, pairs.score)
  )


def _matched(pairs, thresholds) -> dict[str, np.ndarray]:
  found = {name: each.above(thresholds[name]) for name, each in pairs.items()}
  if FIRING in found:
    one, other = found[DIRECTION], found[FIRING]
    found[BOTH] = np.where(one == other, one, -1)
  return found


def _mutual(forth, back) -> np.ndarray:
  """bool: whether the best partner's best partner is the latent itself."""
  some = forth >= 0
  return some & (back[np.where(some, forth, 0)] == np.arange(len(forth)))


def _by_direction(first, second, alive) -> Pairs:
  living = [np.flatnonzero(each) for each in alive]
  near = matching.nearest(first[living[0]], second[living[1]], 1)
  forth = near.children[:, 0]
  there = _mutual(forth, near.parent)
  found = _nobody(len(first))
  found.partner[living[0][there]] = living[1][forth[there]]
  found.score[living[0][there]] = near.child_cosine[there, 0]
  return found


def _by_firing(first, second, alive) -> Pairs:
  one = _living(first, alive[0])
  other = _living(second, alive[1])
  none = np.zeros((0, 2), np.int64)
  counts = matching.cofiring(one, other, none)
  there = _mutual(counts.partner, matching.cofiring(other, one, none).partner)
  latents = np.flatnonzero(there)
  pairs = np.stack([latents, counts.partner[latents]], axis=1)
  joint = one.T.tocsr()[pairs[:, 0]].multiply(other.T.tocsr()[pairs[:, 1]])
  counts = dataclasses.replace(
    counts, joint=np.asarray(joint.sum(axis=1)).reshape(-1)
  )
  found = _nobody(first.shape[1])
  found.partner[latents] = pairs[:, 1]
  found.score[latents] = matching.rates(counts, pairs)["phi"]
  return found


def _living(code, alive) -> scipy.sparse.csr_array:
  """The code with the columns of other latents empty."""
  kept = scipy.sparse.diags_array(alive.astype(np.int32), dtype=np.int32)
  found = scipy.sparse.csr_array(code @ kept)
  found.eliminate_zeros()
  return found


def _nobody(count: int) -> Pairs:
  return Pairs(np.full(count, -1, np.int64), np.full(count, np.nan))


def _rotated(rows, alive, rng) -> np.ndarray:
  """Rows turned at random, with the second moments of the living unit rows."""
  unit = np.asarray(rows, np.float64)
  unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
  some = unit[alive]
  values, vectors = np.linalg.eigh(some.T @ some / len(some))
  kept = values > _LEAST_EIGENVALUE * values[-1]
  root, basis = np.sqrt(values[kept]), vectors[:, kept]
  turn, _ = np.linalg.qr(rng.standard_normal((len(root), len(root))))
  turned = (unit @ basis / root[None]) @ turn
  return ((turned * root[None]) @ basis.T).astype(np.float32)


def _shifted(code, rng) -> scipy.sparse.csr_array:
  """Rows moved on by a quarter to three quarters of all, in a circle."""
  rows = code.shape[0]
  by = int(rng.integers(rows // 4, max(3 * rows // 4, rows // 4 + 1)))
  return scipy.sparse.csr_array(scipy.sparse.vstack([code[by:], code[:by]]))


def _threshold(drawn: Sequence[Pairs], alpha: float, living: int) -> float:
  """The least score that at most a share alpha of latents exceed by chance."""
  scores = np.concatenate([each.score for each in drawn])
  scores = np.sort(scores[np.isfinite(scores)])[::-1]
  allowed = int(alpha * living * len(drawn))
  return max(float(scores[allowed]), 0.0) if allowed < len(scores) else 0.0


def chains(partners: Sequence[np.ndarray]) -> np.ndarray:
  """Follows latents of the first SAE through the others.

  Args:
    partners: of each step, int64 [M], the partner in the next SAE or -1.

  Returns:
    int64 [M1, K]: of each latent of the first SAE its match in each SAE, -1
    from where there is none.
  """
  found = [np.arange(len(partners[0]))]
  for step in partners:
    last = found[-1]
    found.append(np.where(last >= 0, step[np.maximum(last, 0)], -1))
  return np.stack(found, axis=1)


def survival(
  partners: Sequence[np.ndarray], alive: np.ndarray
) -> list[Estimate]:
  """Shares of the first SAE's living latents that are still there.

  Args:
    partners: see `chains`.
    alive: bool [M1].

  Returns:
    K of them, the first 1; standard errors over latents.
  """
  return [_share(each, alive) for each in chains(partners).T]
