"""Standard errors of anything, by leaving out one group of windows at a time.

A share of dead latents or the mode of a histogram is no ratio of sums, so
`estimate.ratio` does not apply. The delete-a-group jackknife does: with G
groups of windows and t_g the statistic without group g,

  se^2 = (G - 1) / G * sum_g (t_g - mean t)^2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemmascope_jax.studies.estimate import Estimate


def jackknife(whole: float, without: Sequence[float], n: int) -> Estimate:
  """A statistic with its standard error.

  Args:
    whole: of all groups.
    without: G, of all groups but one each.
    n: windows that all groups have together.

  Returns:
    The estimate; without a standard error if there are less than two groups.
  """
  without = np.asarray(without, np.float64)
  groups = len(without)
  if groups < 2:
    return Estimate(float(whole), None, n)
  spread = np.square(without - without.mean()).sum()
  return Estimate(
    float(whole), float(np.sqrt((groups - 1) / groups * spread)), n
  )
