"""What the paper found, and whether a result shows it too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

AGREES, DISAGREES, UNCLEAR = "agrees", "disagrees", "too little data"
SURE = 2.0  # standard errors


def verdict(signs: Sequence[float]) -> str:
  """What several effects say together of a claim.

  Args:
    signs: of each effect how many standard errors it is from zero, above it
      where it agrees.

  Returns:
    "agrees" if all are surely above zero, "disagrees" if all are surely below.
  """
  if signs and all(z > SURE for z in signs):
    return AGREES
  if signs and all(z < -SURE for z in signs):
    return DISAGREES
  return UNCLEAR


@dataclasses.dataclass(frozen=True)
class Finding:
  """One of the paper's findings against one result.

  Attributes:
    figure: where the paper shows it.
    claim: the finding.
    seen: what this result shows, with numbers and standard errors.
    verdict: "agrees", "disagrees" or "too little data".
  """

  figure: str
  claim: str
  seen: str
  verdict: str

  def __post_init__(self):
    if self.verdict not in (AGREES, DISAGREES, UNCLEAR):
      raise ValueError(
        f"verdict {self.verdict!r}: expected {AGREES!r}, {DISAGREES!r} or"
        f" {UNCLEAR!r}"
      )
