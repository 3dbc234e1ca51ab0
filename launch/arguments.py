"""What the launchers' commands have in common."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def require_flags_only(argv: Sequence[str]) -> None:
  """Ends with an error if something is no flag, as an unquoted setting is."""
  if argv[1:]:
    sys.exit(
      f"error: {' '.join(argv[1:])}: expected flags only; a value with spaces"
      " needs quotes, as in --run='seed=1 train.site=res.5'"
    )
