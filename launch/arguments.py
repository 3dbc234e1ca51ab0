"""What the launchers' commands have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def require_flags_only(argv: Sequence[str]) -> None:
  """Ends with an error if something is no flag, as an unquoted setting is."""
  if argv[1:]:
    sys.exit(
      f"error: {' '.join(argv[1:])}: expected flags only; settings of one run"
      " stand together in quotes, as --run='seed=1 train.site=res.5'"
    )


def absolute(root: str) -> str:
  """A root by the one name that all launchers give it.

  Runs are done if the very same command has ended, and their folders are part
  of it.
  """
  return os.path.abspath(root)
