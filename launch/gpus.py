"""The GPUs of this machine, and who gets which."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

_VARIABLE = "CUDA_VISIBLE_DEVICES"


def listed(environment: Mapping[str, str]) -> list[str]:
  """The GPUs that may be used: CUDA_VISIBLE_DEVICES, or all there are.

  Args:
    environment: variables.
  """
  if _VARIABLE in environment:
    return [each for each in environment[_VARIABLE].split(",") if each]
  if shutil.which("nvidia-smi", path=environment.get("PATH")) is None:
    return []
  found = subprocess.run(
    ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
    capture_output=True,
    text=True,
    env=dict(environment),
  )
  return found.stdout.split() if found.returncode == 0 else []


def share(
  environment: Mapping[str, str], count: int, index: int
) -> dict[str, str]:
  """The GPUs of one of several that compute at the same time.

  Two can't compute on the same one: JAX takes most of its memory at once.

  Args:
    environment: variables.
    count: runs at a time, or processes of a run.
    index: which one.

  Returns:
    What to change in its environment; nothing where there are no GPUs.

  Raises:
    ValueError: they can't be shared evenly.
  """
  if count == 1:
    return {}
  every = listed(environment)
  if not every:
    return {}
  if len(every) % count:
    raise ValueError(
      f"{_VARIABLE}={','.join(every)}, which {count} that compute at the same"
      f" time can't share evenly: list a multiple of {count}"
    )
  return {_VARIABLE: ",".join(every[index::count])}
