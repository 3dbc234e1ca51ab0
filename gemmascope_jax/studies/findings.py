"""What a result says about a finding of the paper."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
  """One finding of the paper, and whether a result shows it too.

  Attributes:
    figure: of the paper.
    claim: what the paper finds.
    seen: what this result shows, with numbers and standard errors.
    verdict: "agrees", "disagrees" or "too little data".
  """

  figure: str
  claim: str
  seen: str
  verdict: str
