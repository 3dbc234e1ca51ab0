"""One step of a ladder: what becomes of a narrow SAE's latents in a wide one.

Letters: M1 narrow and M2 wide latents, D width of the site, G groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.activity import Entries, resampling
from gemmascope_jax.studies.width import matching
from gemmascope_jax.studies.width.stitching import (
  CLASSES,
  FAMILIAR,
  Stitching,
  classify,
)

_COSINES = np.linspace(-0.2, 1, 49)
_QUARTILES = (25, 50, 75)


class Step:
  """A narrow and a wide SAE.

  Attributes:
    narrow: name.
    wide: name.
    arrays: numbers of single latents, once `result` was made.
  """

  def __init__(
    self, narrow: str, narrow_sae: SAE, wide: str, wide_sae: SAE, groups: int
  ):
    """Compares the decoders; rows are still to come."""
    self.narrow, self.wide = narrow, wide
    self.arrays: dict[str, np.ndarray] = {}
    low = np.asarray(narrow_sae.params.w_dec)
    high = np.asarray(wide_sae.params.w_dec)
    self._nearest = matching.nearest(low, high)
    self._null = matching.null_cosines(low, high)
    self._stitching = Stitching(high, groups)

  def add(self, entries: Entries, error: np.ndarray, group: int) -> None:
    """Adds a block: the wide SAE's entries, the narrow one's error [B, D]."""
    self._stitching.add(entries, error, group)

  def result(self, activity, frequencies) -> dict[str, Any]:
    """What was found.

    Args:
      activity: by name, the `matching.Activity` of both SAEs.
      frequencies: by name, the `Frequencies` of both SAEs.

    Returns:
      JSON-ready: "classes", shares of the wide SAE's latents in each class of
      `stitching`; "familiar", share of its latents that fire; "unclear", share
      of those whose change of error is within two standard errors of 0;
      "lost", share of the narrow SAE's firing latents with no wide one above
      the cosine; "cosine", histograms of largest cosines wide to narrow, and
      of random directions; "cofiring", quartiles over split and over kept
      latents of how they fire with their parents.
    """
    inserted = self._stitching.finish()
    near = self._nearest
    windows = frequencies[self.wide].windows
    groups = len(inserted.rows)

    def classes(weights):
      return classify(
        inserted.change(weights),
        weights @ inserted.fired > 0,
        near.cosine,
        near.parent,
      )

    def estimate(statistic):
      return resampling.estimate(statistic, groups, windows).to_dict()

    def share(which):
      return estimate(lambda weights: float((classes(weights) == which).mean()))

    found = classes(np.ones(groups))
    fires = inserted.fired.sum(axis=0) > 0
    familiar = near.cosine > FAMILIAR
    lost = near.child_cosine[:, 0] <= FAMILIAR
    narrow = frequencies[self.narrow]
    change, stderr = inserted.change(), inserted.stderr()
    unclear = np.abs(change[fires]) < 2 * stderr[fires]
    cofiring, rates = self._cofiring(activity, found)
    self.arrays = {
      "cosine": near.cosine,
      "parent": near.parent.astype(np.int32),
      "change": change.astype(np.float32),
      "change_stderr": stderr.astype(np.float32),
      "class": found.astype(np.int8),
      "children": near.children.astype(np.int32),
      "child_cosine": near.child_cosine,
      "partner": cofiring.partner.astype(np.int32),
      "jaccard": cofiring.jaccard.astype(np.float32),
    }
    return {
      "narrow": self.narrow,
      "wide": self.wide,
      "widths": [len(near.children), len(near.cosine)],
      "threshold": FAMILIAR,
      "classes": {name: share(i) for i, name in enumerate(CLASSES)},
      "familiar": estimate(lambda w: _mean(familiar[w @ inserted.fired > 0])),
      "unclear": _mean(unclear),
      "lost": estimate(lambda w: _mean(lost[narrow.weighted(w) > 0])),
      "cosine": {
        "edges": _COSINES.round(4).tolist(),
        "wide": _histogram(near.cosine[fires]),
        "null": _histogram(self._null),
      },
      "cofiring": {"rows": cofiring.rows} | rates,
    }

  def _cofiring(self, activity, found):
    """Counts, and how split and kept latents fire with their parents."""
    near = self._nearest
    wide = np.arange(len(near.parent))
    pairs = np.stack([near.parent, wide], axis=1)
    counted = matching.cofiring(
      activity[self.narrow].matrix(), activity[self.wide].matrix(), pairs
    )
    rates = matching.rates(counted, pairs)
    return counted, {
      name: {
        key: _quartiles(values[found == CLASSES.index(name)])
        for key, values in rates.items()
      }
      for name in ("split", "kept")
    }


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if len(values) else 0.0


def _histogram(cosines: np.ndarray) -> list[int]:
  inside = np.clip(cosines, _COSINES[0], _COSINES[-1])
  return np.histogram(inside, _COSINES)[0].tolist()


def _quartiles(values: np.ndarray) -> list[float] | None:
  values = values[np.isfinite(values)]
  if not len(values):
    return None
  return [float(v) for v in np.percentile(values, _QUARTILES)]
