"""Standard errors of anything, by drawing groups of windows again.

A share of dead latents or the mode of a histogram is no ratio of sums, so
`estimate.ratio` does not apply. The bootstrap does: a statistic is computed
anew on as many groups of windows, drawn with replacement, and spreads as it
would between studies. (Leaving one group out at a time, the jackknife, gives
about twice that for counts of latents beyond a threshold.) The draws are the
same for all SAEs of as many groups, so differences are paired.

Letters: R draws, G groups of windows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gemmascope_jax.studies.estimate import Estimate

DRAWS = 100


def weights(groups: int) -> np.ndarray:
  """float64 [R, G]: how often each group is in each draw."""
  rng = np.random.default_rng(20_240_809)
  even = np.full(groups, 1 / groups)
  return rng.multinomial(groups, even, size=DRAWS).astype(np.float64)


def estimate(
  statistic: Callable[[np.ndarray], float], groups: int, n: int
) -> Estimate:
  """A statistic with its standard error.

  Args:
    statistic: of the weights [G] that the groups have, all 1 for what was
      measured.
    groups: G.
    n: windows that all groups have together.

  Returns:
    The estimate; without a standard error for less than two groups, or where
    some draw gives no finite number.
  """
  whole = float(statistic(np.ones(groups)))
  if groups < 2:
    return Estimate(whole, None, n)
  drawn = np.array([statistic(each) for each in weights(groups)])
  if not np.isfinite(drawn).all():
    return Estimate(whole, None, n)
  # Draws from G groups spread less than the groups do.
  spread = drawn.std(ddof=1) * np.sqrt(groups / (groups - 1))
  return Estimate(whole, float(spread), n)
