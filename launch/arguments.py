"""What the launchers' commands have in common."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence


def require_flags_only(argv: Sequence[str]) -> None:
  """Ends with an error if something is no flag, as an unquoted setting is."""
  if argv[1:]:
    sys.exit(
      f"error: {' '.join(argv[1:])}: expected flags only; a value with spaces"
      " needs quotes, as in --run='seed=1 train.site=res.5'"
    )


def require_settings(
  flag: str, given: Sequence[str], own: Collection[str]
) -> None:
  """Refuses what is no setting of a config, or not for the user to set.

  Args:
    flag: that they were given with, for errors.
    given: each expected to be "key=value".
    own: keys that the launcher sets itself.

  Raises:
    ValueError: names the flag and the setting.
  """
  for setting in given:
    if not re.fullmatch(r"[\w.]+=.*", setting, re.S):
      raise ValueError(f"{flag}: {setting!r} is not key=value")
    key = setting.partition("=")[0]
    if key in own:
      raise ValueError(f"{flag}: {key} is the launcher's own to set")
